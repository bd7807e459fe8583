from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from driftproof.weights.files import WEIGHTS, write_tensors
from driftproof.weights.names import file_state, is_weight, module_state

_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
_EXPERTS: dict[str, Any] = {"num_key_value_heads": 1, "num_experts_per_tok": 2}
CONFIGS = {
    "qwen3": lambda: Qwen3Config(**_SIZES, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **_SIZES, **_EXPERTS, head_dim=8, num_experts=3, moe_intermediate_size=8, tie_word_embeddings=False
    ),
    "mixtral": lambda: MixtralConfig(**_SIZES, **_EXPERTS, num_local_experts=3),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZES),
    "gpt2": lambda: GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32),
}


def model_of(architecture: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[architecture]())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_published_names_and_numbers_are_those_of_the_file_that_transformers_writes(
    architecture: str, tmp_path: Path
) -> None:
    model = model_of(architecture)
    model.save_pretrained(tmp_path)
    expected = load_file(tmp_path / WEIGHTS)
    for opened in (model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        state = file_state(opened, expected.keys())
        assert state.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_there_and_back_changes_no_number(architecture: str) -> None:
    model, other = model_of(architecture, seed=1), model_of(architecture)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    found = module_state(other, file_state(model))
    state = model.state_dict()
    assert found.keys() <= state.keys()
    # Of tied weights one is enough.
    assert {tensor.data_ptr() for name, tensor in state.items() if name not in found} <= {
        tensor.data_ptr() for name, tensor in state.items() if name in found
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_what_is_renamed_is_not_copied() -> None:
    model = model_of("gpt_neox")
    owners = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert {tensor.data_ptr() for tensor in file_state(model).values()} <= owners


def test_names_are_those_of_the_files_that_the_model_was_opened_from(tmp_path: Path) -> None:
    """GPT-2 on the hub lacks a prefix, and some files have the head where others have the embeddings."""
    model = model_of("gpt2")
    short = {name.removeprefix("transformer.") for name in file_state(model)}
    assert file_state(model, short).keys() == short
    qwen = model_of("qwen3")
    names = (file_state(qwen).keys() - {"model.embed_tokens.weight"}) | {"lm_head.weight"}
    assert file_state(qwen, names).keys() == names
    write_tensors(tmp_path / WEIGHTS, file_state(qwen, names))
    assert load_file(tmp_path / WEIGHTS).keys() == names


def test_a_tensor_that_the_model_does_not_have_keeps_its_name() -> None:
    model = model_of("gpt_neox")
    found = module_state(model, file_state(model) | {"strange": torch.ones(2)})
    assert found["strange"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h.0.attn.bias", False),
        ("gpt_neox.layers.0.attention.bias", False),
        ("gpt_neox.layers.0.attention.masked_bias", False),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", False),
        ("h.0.attn.c_attn.bias", True),
        ("gpt_neox.layers.0.attention.dense.bias", True),
        ("lm_head.bias", True),
    ],
)
def test_masks_and_frequencies_are_no_weights(name: str, expected: bool) -> None:
    assert is_weight(name) is expected
