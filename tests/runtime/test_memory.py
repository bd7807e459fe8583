"""The estimate against what a real pass of tiny models keeps and allocates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from driftproof.errors import ModelError
from driftproof.runtime.memory import engine_memory, learner_memory
from driftproof.runtime.resources import read_config

ROWS, TOKENS = 8, 96


def config(kind: Any, **changes: Any) -> Any:
    sizes = {"vocab_size": 100, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    return kind(**(sizes | heads | changes))


def kept_by_a_real_pass(model: Any, bfloat16: bool) -> int:
    """Bytes that autograd holds after a real forward pass on the CPU."""
    storages: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    mask = torch.ones(ROWS, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16),
    ):
        model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storages.values())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("kind", [Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 4}, {"intermediate_size": 1024}, {"hidden_size": 256}])
def test_activations_are_those_of_a_real_pass(kind: Any, changes: dict[str, int], bfloat16: bool) -> None:
    found = learner_memory(config(kind, **changes), rows=ROWS, row_tokens=TOKENS, bfloat16=bfloat16)
    real = kept_by_a_real_pass(AutoModelForCausalLM.from_config(config(kind, **changes)).eval(), bfloat16)
    assert found["activations"] == pytest.approx(real, rel=0.05)


def test_activations_of_experts_are_those_of_a_real_pass() -> None:
    experts = config(Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96)
    found = learner_memory(experts, rows=ROWS, row_tokens=TOKENS)
    real = kept_by_a_real_pass(AutoModelForCausalLM.from_config(experts).eval(), bfloat16=False)
    assert found["activations"] == pytest.approx(real, rel=0.1)


def test_weights_gradients_and_moments_are_those_of_a_real_step() -> None:
    model = AutoModelForCausalLM.from_config(config(Qwen3Config))
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    found = learner_memory(config(Qwen3Config), rows=1, row_tokens=8)
    assert found["weights"] == sum(parameter.nbytes for parameter in model.parameters())
    assert found["gradients"] == sum(
        parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None
    )
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert found["optimizer"] == sum(moment.nbytes for moment in moments)


def test_checkpointing_keeps_far_less() -> None:
    deep = config(Qwen3Config, num_hidden_layers=8)
    plain, checkpointed = (
        learner_memory(deep, rows=ROWS, row_tokens=TOKENS, gradient_checkpointing=on)["activations"]
        for on in (False, True)
    )
    assert checkpointed < plain / 5


def test_nothing_is_allocated_for_a_model_larger_than_this_machine() -> None:
    large = config(Qwen3Config, hidden_size=8192, intermediate_size=29568, num_hidden_layers=80, head_dim=128)
    found = learner_memory(large, rows=4, row_tokens=4096, bfloat16=True)
    assert sum(found.values()) > 500e9


def test_the_cache_of_an_engine() -> None:
    found = engine_memory(config(Qwen3Config), slots=3, tokens=50)
    assert found["cache"] == 2 * 2 * 2 * 32 * 4 * 3 * 50
    assert found["weights"] == sum(p.nbytes for p in AutoModelForCausalLM.from_config(config(Qwen3Config)).parameters())


def test_only_the_configuration_is_read(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    assert read_config(tmp_path).hidden_size == 128
    with pytest.raises(ModelError, match=r"no usable config\.json"):
        read_config(tmp_path / "none")
