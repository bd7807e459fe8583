"""The ways to compute log-probs, how one is chosen, and what is refused before any of them starts."""

import importlib.util
from typing import Literal, get_args

import torch
from torch import Tensor

from driftproof.logprobs.head import Head

Variant = Literal["auto", "reference", "chunked", "triton"]
"""`reference` holds all logits. `chunked` (torch) and `triton` (GPU) hold a block of them within a byte budget.

`auto` is `reference` where all logits are small, else `triton` on CUDA where Triton is installed, else `chunked`.
"""

DEFAULT_BUDGET_BYTES = 2**29
"""Bytes of a block of logits. With half of it, the products of a vocabulary of 150,000 are some 7% slower on a CPU."""

# Where all logits fit in this, the number of operations matters and the memory does not.
_SMALL_BYTES = 2**20


def choose(variant: Variant, hidden_NH: Tensor, head: Head) -> Variant:
    """The variant that `auto` stands for here; another one as it is."""
    if variant != "auto":
        return variant
    if len(hidden_NH) * len(head.weight_VH) * hidden_NH.itemsize <= _SMALL_BYTES:
        return "reference"
    return "triton" if hidden_NH.is_cuda and importlib.util.find_spec("triton") else "chunked"


def check_inputs(
    hidden_NH: Tensor, head: Head, targets_N: Tensor, variant: str, budget_bytes: int, check_targets: bool
) -> None:
    """Refuse inputs that cannot be computed with; `check_targets` waits for the GPU once, to look at the targets."""
    hidden, weight = list(hidden_NH.shape), list(head.weight_VH.shape)
    if len(hidden) != 2 or hidden[1] != weight[1]:
        needed = f"for a head of shape {weight} they must be [N, {weight[1]}]"
        raise ValueError(f"hidden states have shape {hidden}; {needed}")
    if targets_N.shape != hidden_NH.shape[:1] or targets_N.dtype != torch.int64:
        given = f"{targets_N.dtype} of shape {list(targets_N.shape)}"
        raise ValueError(f"targets are {given}; they must be token ids, int64 [{len(hidden_NH)}]")
    devices = {tensor.device for tensor in (hidden_NH, head.weight_VH, targets_N)}
    if len(devices) > 1:
        raise ValueError(f"hidden states, head and targets are on {devices}; they must be on one device")
    if variant not in get_args(Variant):
        raise ValueError(f"no variant {variant!r}; choose one of {', '.join(get_args(Variant))}")
    if budget_bytes < 1:
        raise ValueError(f"budget_bytes is {budget_bytes}; it must be positive")
    if check_targets and len(targets_N):
        least, most = (int(bound) for bound in targets_N.aminmax())
        if least < 0 or most >= weight[0]:
            wrong = least if least < 0 else most
            raise ValueError(
                f"the target of token {int((targets_N == wrong).nonzero()[0])} is {wrong}; token ids go from 0 to "
                f"{weight[0] - 1}, and tokens that are not scored must be left out"
            )
