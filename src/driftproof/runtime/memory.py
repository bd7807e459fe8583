"""Memory that a learner and an engine need, counted before anything is downloaded or allocated.

Guarantees: sizes are counted, not fitted: the model runs once on tensors without storage, and what autograd would keep
of that pass is added up, whatever the architecture. Only the model's `config.json` is read. What else a process needs
(libraries, CUDA's context, fragmentation) is not in it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driftproof.logprobs.variants import DEFAULT_BUDGET_BYTES
from driftproof.weights.models import UNTRUSTED, checkpoint_activations, readable


def learner_memory(
    config: Any, *, rows: int, row_tokens: int, bfloat16: bool = False, gradient_checkpointing: bool = False
) -> dict[str, int]:
    """Bytes at the peak of a step whose largest micro-batch has `rows` rows of `row_tokens` tokens, by their purpose.

    Weights, gradients and AdamW's two moments are float32; activations are all that autograd keeps of a forward pass,
    bfloat16 copies of the weights included; logits are their blocks, with gradients, and the hidden states before them.

    Args:
        config: a transformers configuration of a causal language model, see `read_config`.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config).eval()
        if gradient_checkpointing:
            checkpoint_activations(model)
        weights = sum(parameter.numel() * 4 for parameter in model.parameters())
        kept = _Kept(model)
        ids = torch.zeros(rows, row_tokens, dtype=torch.long)
        mask = torch.ones(rows, 1, row_tokens, row_tokens, dtype=torch.bool)
        with kept, torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    hidden_bytes = rows * row_tokens * config.get_text_config().hidden_size * (2 if bfloat16 else 4)
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": 2 * weights,
        "activations": kept.bytes + mask.numel(),
        "logits": 2 * DEFAULT_BUDGET_BYTES + 2 * hidden_bytes,
    }


def engine_memory(config: Any, *, slots: int, tokens: int) -> dict[str, int]:
    """Bytes of an embedded engine, all float32, with a cache for `slots` prompts and responses of `tokens` tokens."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    with FakeTensorMode():
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cached = 2 * text.num_hidden_layers * heads * width
    return {"weights": 4 * parameters, "cache": 4 * slots * tokens * cached}


def read_config(model: Path) -> Any:
    """The transformers configuration of a model directory; only its `config.json` is read.

    Raises:
        ModelError: there is none, or transformers knows no causal language model by it.
    """
    from transformers import AutoConfig

    with readable(f"{model} has no usable config.json"):
        return AutoConfig.from_pretrained(model, **UNTRUSTED)


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
