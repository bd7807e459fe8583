"""Memory of a model that is trained or decoded, counted and not fitted.

The model runs once on tensors without storage, and what autograd would keep of that pass is added up, whatever the
architecture; libraries, CUDA's context and fragmentation are not in it. Nothing is loaded.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from driftproof.logprobs.variants import DEFAULT_BUDGET_BYTES
from driftproof.weights.models import checkpoint_activations

_KEPT_NUMBERS = 32
"""Numbers of each position that a layer keeps for its gradient, as multiples of its width; about so many."""


def learner_memory(
    config: Any, *, rows: int, row_tokens: int, bfloat16: bool = False, gradient_checkpointing: bool = False
) -> dict[str, int]:
    """Bytes at the peak of a step whose largest micro-batch has `rows` rows of `row_tokens` tokens, by their purpose.

    Weights, gradients and AdamW's two moments are float32; activations are all that autograd keeps of a forward pass,
    bfloat16 copies of the weights included; logits are their blocks, with gradients, and the hidden states before them.

    Args:
        config: a transformers configuration of a causal language model.
    """
    weights = 4 * _parameters(config)
    hidden_bytes = rows * row_tokens * config.get_text_config().hidden_size * (2 if bfloat16 else 4)
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": 2 * weights,
        "activations": _activations(config, rows, row_tokens, bfloat16, gradient_checkpointing),
        "logits": 2 * DEFAULT_BUDGET_BYTES + 2 * hidden_bytes,
    }


def _activations(config: Any, rows: int, row_tokens: int, bfloat16: bool, gradient_checkpointing: bool) -> int:
    """Bytes that autograd keeps of a forward pass, by one without storage; by a rule where a model needs values."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logged, logger.disabled = logger.disabled, True
    try:
        with FakeTensorMode():
            model = AutoModelForCausalLM.from_config(config).eval()
            if gradient_checkpointing:
                checkpoint_activations(model)
            kept = _Kept(model)
            ids = torch.zeros(rows, row_tokens, dtype=torch.long)
            mask = torch.ones(rows, 1, row_tokens, row_tokens, dtype=torch.bool)
            # Positions as in a row of several responses, which may be longer than the model's last one.
            inputs = {"input_ids": ids, "position_ids": torch.zeros_like(ids), "attention_mask": mask}
            with kept, _DenseExperts(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                model.get_decoder()(**inputs, use_cache=False)
        return kept.bytes + mask.numel()
    except Exception:  # noqa: BLE001 (what depends on values fails in as many ways as there are models)
        text = config.get_text_config()
        numbers = rows * row_tokens * text.num_hidden_layers * text.hidden_size
        return int(numbers * (1 if gradient_checkpointing else _KEPT_NUMBERS) * (2 if bfloat16 else 4))
    finally:
        logger.disabled = logged


def engine_memory(config: Any, *, slots: int, tokens: int) -> dict[str, int]:
    """Bytes of an embedded engine, all float32, with a cache for `slots` prompts and responses of `tokens` tokens."""
    text = config.get_text_config()
    queries = getattr(text, "num_attention_heads", None) or 1
    heads = getattr(text, "num_key_value_heads", None) or queries
    width = getattr(text, "head_dim", None) or text.hidden_size // queries
    cached = 2 * text.num_hidden_layers * heads * width
    return {"weights": 4 * _parameters(config), "cache": 4 * slots * tokens * cached}


def _parameters(config: Any) -> int:
    """Numbers that a model has, tied ones once."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


class _DenseExperts(TorchFunctionMode):
    """Takes the products of experts with their tokens for products of as many numbers: torch cannot tell the shapes of
    the former without their values, and not in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("grouped_mm", "_grouped_mm"):
            tokens_SK, weights_EKN = args[:2]
            # As the real one, it stays in the type of the weights under autocast.
            with torch.autocast("cpu", enabled=False):
                return tokens_SK @ weights_EKN[0]
        return func(*args, **(kwargs or {}))


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the storages that a forward pass keeps for its backward pass, each once; weights are not among them."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._weights = {_storage(parameter) for parameter in model.parameters()}
        self._kept: dict[int, Tensor] = {}
        """A tensor of each storage: one that is freed could come again as another one."""
        super().__init__(self._keep, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in self._weights:
            self._kept[storage] = tensor
        return tensor


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
