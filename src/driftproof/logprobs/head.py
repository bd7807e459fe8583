"""The output layer, as every variant of the log-prob operation takes it.

A `Head` that exists is well-formed: its shapes agree, its temperature and soft-cap are positive numbers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """The output layer, and what turns its logits into the distribution that is sampled from.

    That is softmax(z) with z = softcap * tanh(logits / softcap) / temperature and logits = hidden weight^T + bias. The
    weight and the bias get a gradient exactly when they require one.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    temperature: float = 1.0
    softcap: float | None = None
    """None where the model does not cap its logits."""

    def __post_init__(self) -> None:
        if self.weight_VH.dim() != 2:
            raise ValueError(f"the head's weight has shape {list(self.weight_VH.shape)}; it must be [V, H]")
        if self.bias_V is not None and self.bias_V.shape != self.weight_VH.shape[:1]:
            raise ValueError(
                f"the head's bias has shape {list(self.bias_V.shape)} beside a weight of {list(self.weight_VH.shape)}; "
                f"it must be [{self.weight_VH.shape[0]}]"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}; it must be a positive number")
        if self.softcap is not None and not (math.isfinite(self.softcap) and self.softcap > 0):
            raise ValueError(f"softcap is {self.softcap}; it must be a positive number, or None for no cap")


def product_dtype(hidden_NH: Tensor) -> torch.dtype:
    """The dtype in which the logits are computed: that of the hidden states, or autocast's where it is on."""
    device = hidden_NH.device.type
    if hidden_NH.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden_NH.dtype
