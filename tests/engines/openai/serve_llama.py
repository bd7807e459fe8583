"""llama.cpp's HTTP server with a tiny Qwen3 of ours: `python serve_llama.py MODEL FILE.gguf [KEY]`, until stdin ends.

A script of its own, for an environment with xllamacpp, gguf and safetensors (`make llama`). The model's weights are
written as GGUF, in float32, with its byte tokenizer. Prints the address once it answers.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import gguf
import xllamacpp
from safetensors.numpy import load_file

SLOTS, CONTEXT = 8, 256


def convert(model: Path, file: Path) -> None:
    """Write a Qwen3 directory with a byte tokenizer as GGUF."""
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    _add_tokenizer(writer, model, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for name, tensor in load_file(model / "model.safetensors").items():
        written = names.get_name(name, try_suffixes=(".weight",))
        assert written, f"no name for {name}"
        writer.add_tensor(written, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, model: Path, config: dict[str, Any]) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([kinds[token in special] for token in vocabulary])
    # llama.cpp wants some: this one makes a token that is not in the vocabulary, and so none.
    writer.add_token_merges([f"{vocabulary[-1]} {vocabulary[-1]}"])
    writer.add_bos_token_id(config["eos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)


def serve(file: Path, keys: list[str]) -> xllamacpp.Server:
    """On a free port; the server must be kept, it ends with the object."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = keys
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * CONTEXT
    parameters.cpuparams.n_threads = 1
    # Else keys and values are float16, and so is what its flash attention computes: 3e-3 nats beside ours, not 1e-5.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(parameters)


if __name__ == "__main__":
    model, file = map(Path, sys.argv[1:3])
    convert(model, file)
    server = serve(file, sys.argv[3:])
    with urllib.request.urlopen(f"{server.listening_address}/health", timeout=60) as answer:
        assert answer.status == 200
    print(server.listening_address, flush=True)
    sys.stdin.read()
