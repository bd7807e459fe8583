"""Tiny models of random weights, one of each architecture, as directories that a recipe can name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from driftproof.tiny.model import make_tiny_model
from driftproof.weights.files import WEIGHTS
from driftproof.weights.standin import randomize

CONTEXT, WINDOW, VOCABULARY = 128, 16, 264
_IDS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0}
_QWEN_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_DEEPSEEK = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
_DEEPSEEK |= {"n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An architecture: a class of configurations, with settings beside the sizes that all models have."""

    config: str
    """Class of transformers."""
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    rename: Callable[[str], str] = str
    """Other names for the tensors of its file."""
    masks: str = ""
    """Where its file holds the masks of layer {}, as old ones do."""


def _kind(config: str, note: str = "", rename: Callable[[str], str] = str, masks: str = "", **settings: Any) -> Kind:
    return Kind(config=config, settings=settings, note=note, rename=rename, masks=masks)


KINDS: dict[str, Kind] = {
    "llama": _kind("LlamaConfig"),
    "qwen2": _kind("Qwen2Config", "tied head", tie_word_embeddings=True),
    "qwen2 with windows": _kind(
        "Qwen2Config",
        "a window in one of two layers",
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    "qwen2, head stored": _kind(
        "Qwen2Config",
        "the file has the tied head, and no embeddings",
        lambda name: name.replace("model.embed_tokens", "lm_head"),
        tie_word_embeddings=True,
    ),
    "qwen3": _kind("Qwen3Config", head_dim=16),
    "mistral": _kind("MistralConfig", "windows", sliding_window=WINDOW),
    "ministral": _kind("MinistralConfig", "windows", head_dim=16, **_ALTERNATING),
    "ministral3": _kind("Ministral3Config", "scaled queries", head_dim=16),
    "phi": _kind("PhiConfig"),
    "phi3": _kind("Phi3Config", "windows", sliding_window=WINDOW),
    "phi3 with longrope": _kind(
        "Phi3Config",
        "within the original context of 96",
        sliding_window=None,
        original_max_position_embeddings=96,
        rope_parameters=_ROPE | {"original_max_position_embeddings": 96},
    ),
    "gemma": _kind("GemmaConfig", head_dim=16),
    "gemma2": _kind("Gemma2Config", "windows, capped scores and logits", head_dim=16, **_ALTERNATING),
    "gemma3": _kind("Gemma3TextConfig", "windows", head_dim=16, **_ALTERNATING),
    "gemma3 with vision": _kind(
        "Gemma3Config",
        "its text is trained",
        text_config=_IDS | _SIZES | {"head_dim": 16} | _ALTERNATING,
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    ),
    "vaultgemma": _kind("VaultGemmaConfig", "windows, capped scores", head_dim=16, **_ALTERNATING),
    "gemma3n": _kind(
        "Gemma3nTextConfig",
        "windows, layers that share a cache",
        head_dim=16,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=WINDOW,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "olmo": _kind("OlmoConfig"),
    "olmo2": _kind("Olmo2Config"),
    "olmo3": _kind("Olmo3Config", "windows", **_ALTERNATING),
    "olmoe": _kind("OlmoeConfig", "experts", num_experts=4, num_experts_per_tok=2),
    "smollm3": _kind("SmolLM3Config", "layers without positions", no_rope_layers=[1, 0]),
    "granite": _kind(
        "GraniteConfig", "scaled logits", logits_scaling=4.0, embedding_multiplier=2.0, residual_multiplier=0.5
    ),
    "granitemoe": _kind(
        "GraniteMoeConfig", "experts, scaled logits", num_local_experts=4, num_experts_per_tok=2, logits_scaling=4.0
    ),
    "hyperclovax": _kind("HyperCLOVAXConfig", "scaled logits", logits_scaling=0.5),
    "cohere": _kind("CohereConfig", "scaled logits", logit_scale=0.25),
    "cohere2": _kind("Cohere2Config", "windows, scaled logits", logit_scale=0.25, **_ALTERNATING),
    "stablelm": _kind("StableLmConfig"),
    "starcoder2": _kind("Starcoder2Config", "windows", sliding_window=WINDOW),
    "gpt2": _kind("GPT2Config", "learned positions", n_inner=None),
    "gpt2 of the hub": _kind(
        "GPT2Config",
        "names without a prefix, masks in the file",
        lambda name: name.removeprefix("transformer."),
        masks="h.{}.attn.bias",
        n_inner=None,
    ),
    "gpt_bigcode": _kind("GPTBigCodeConfig", "learned positions", n_inner=None),
    "gpt_neo": _kind("GPTNeoConfig", attention_types=[[["global", "local"], 1]], window_size=WINDOW),
    "gptj": _kind("GPTJConfig", rotary_dim=8, n_inner=None),
    "codegen": _kind("CodeGenConfig", rotary_dim=8, n_inner=None),
    "gpt_neox": _kind("GPTNeoXConfig", "the head has another name in files"),
    "pythia of the hub": _kind(
        "GPTNeoXConfig", "masks in the file", masks="gpt_neox.layers.{}.attention.bias", attention_bias=True
    ),
    "opt": _kind("OPTConfig", "learned positions", ffn_dim=128, word_embed_proj_dim=64),
    "qwen2_moe": _kind("Qwen2MoeConfig", "experts", shared_expert_intermediate_size=32, **_QWEN_MOE),
    "qwen3_moe": _kind("Qwen3MoeConfig", "experts", head_dim=16, **_QWEN_MOE),
    "mixtral": _kind("MixtralConfig", "experts", num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "mixtral with windows": _kind(
        "MixtralConfig", "experts, windows", num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW
    ),
    "gpt_oss": _kind(
        "GptOssConfig",
        "experts, windows, attention sinks",
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        **_ALTERNATING,
    ),
    "deepseek_v2": _kind("DeepseekV2Config", "experts, latent attention", **_DEEPSEEK | _MLA),
    "deepseek_v3": _kind("DeepseekV3Config", "experts, latent attention", **_DEEPSEEK | _MLA),
    "dots1": _kind("Dots1Config", "experts", head_dim=16, **_DEEPSEEK),
    "glm": _kind("GlmConfig", head_dim=16),
    "glm4": _kind("Glm4Config", head_dim=16),
    "glm4_moe": _kind("Glm4MoeConfig", "experts", head_dim=16, **_DEEPSEEK),
    "exaone4": _kind("Exaone4Config", "windows", **_ALTERNATING),
    "nemotron": _kind("NemotronConfig"),
    "persimmon": _kind("PersimmonConfig"),
    "helium": _kind("HeliumConfig", head_dim=16),
    "ernie4_5": _kind("Ernie4_5Config", head_dim=16),
    "seed_oss": _kind("SeedOssConfig", head_dim=16),
    "arcee": _kind("ArceeConfig"),
    "apertus": _kind("ApertusConfig"),
    "hunyuan": _kind("HunYuanDenseV1Config", head_dim=16),
    "nanochat": _kind("NanoChatConfig", "capped logits"),
    "bitnet": _kind("BitNetConfig"),
    "diffllama": _kind("DiffLlamaConfig"),
    "llama4": _kind(
        "Llama4TextConfig",
        "experts, chunks",
        head_dim=16,
        intermediate_size_mlp=128,
        num_local_experts=4,
        num_experts_per_tok=1,
        attention_chunk_size=WINDOW,
        layer_types=["chunked_attention", "full_attention"],
    ),
    "falcon": _kind("FalconConfig", alibi=False, new_decoder_architecture=False),
    "falcon with alibi": _kind("FalconConfig", alibi=True, new_decoder_architecture=False),
    "bloom": _kind("BloomConfig", "alibi"),
    "mpt": _kind("MptConfig", "alibi", d_model=64, n_heads=4, n_layers=2, max_seq_len=CONTEXT),
    "xglm": _kind("XGLMConfig", d_model=64, ffn_dim=128, num_layers=2, attention_heads=4),
    "biogpt": _kind("BioGptConfig"),
    "mamba": _kind("MambaConfig", "no attention", state_size=8),
    "recurrent_gemma": _kind("RecurrentGemmaConfig", attention_window_size=WINDOW),
    "qwen3_next": _kind("Qwen3NextConfig", "linear attention", head_dim=16, **_QWEN_MOE),
    "lfm2": _kind("Lfm2Config", "convolutions", layer_types=["conv", "full_attention"]),
    "jamba": _kind("JambaConfig", "no attention in some layers", use_mamba_kernels=False),
    "falcon_h1": _kind("FalconH1Config", "no attention in some layers"),
}
"""Architectures by the names that the table has."""


def make(name: str, directory: Path, tokenizer: Path) -> Path:
    """The model directory of a kind, with the tokenizer of another model directory."""
    kind, path = KINDS[name], directory / name.replace(" ", "-").replace(",", "")
    config_class = getattr(transformers, kind.config)
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config_class(**_IDS | _SIZES | kind.settings), dtype=torch.float32)
    randomize(model)
    model.save_pretrained(path)
    tensors = {kind.rename(key): tensor for key, tensor in load_file(path / WEIGHTS).items()}
    if kind.masks:
        mask = torch.ones(1, 1, CONTEXT, CONTEXT, dtype=torch.bool).tril()
        tensors |= {kind.masks.format(layer): mask.clone() for layer in range(2)}
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, path / file)
    return path


def make_tokenizer(directory: Path) -> Path:
    """A model directory for its tokenizer of bytes."""
    make_tiny_model(directory / "bytes", tokenizer="bytes", train=False)
    return directory / "bytes"
