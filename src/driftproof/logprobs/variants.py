"""The ways to compute log-probs, how one is chosen, and what is refused before any of them starts."""

from __future__ import annotations

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
    """What `auto` stands for here; another variant as it is.

    Raises:
        ValueError: `reference` of a vocab-parallel head.
    """
    whole = head.shard is None
    if variant == "reference" and not whole:
        raise ValueError("variant 'reference' needs the whole head; a vocab shard takes 'chunked' or 'triton'")
    if variant != "auto":
        return variant
    if whole and len(hidden_NH) * len(head.weight_VH) * hidden_NH.itemsize <= _SMALL_BYTES:
        return "reference"
    return "triton" if hidden_NH.is_cuda and importlib.util.find_spec("triton") else "chunked"


def check_inputs(hidden_NH: Tensor, head: Head, targets_N: Tensor, variant: str, budget_bytes: int) -> None:
    """Refuse what cannot be computed. It waits for the GPU once, to look at the targets.

    Raises:
        ValueError: shapes, dtypes or devices that do not agree, a target outside the vocabulary, an unknown variant, a
            budget that is not positive.
    """
    weight_VH = head.weight_VH
    if hidden_NH.dim() != 2 or hidden_NH.shape[1] != weight_VH.shape[1]:
        raise ValueError(
            f"hidden states have shape {list(hidden_NH.shape)}; for a head of shape {list(weight_VH.shape)} they must "
            f"be [N, {weight_VH.shape[1]}]"
        )
    if targets_N.shape != hidden_NH.shape[:1] or targets_N.dtype != torch.int64:
        raise ValueError(
            f"targets are {targets_N.dtype} of shape {list(targets_N.shape)}; they must be token ids, "
            f"int64 [{len(hidden_NH)}]"
        )
    if len({tensor.device for tensor in (hidden_NH, weight_VH, targets_N)}) > 1:
        raise ValueError(
            f"hidden states are on {hidden_NH.device}, the head on {weight_VH.device}, targets on {targets_N.device}; "
            "move them to one device"
        )
    if variant not in get_args(Variant):
        raise ValueError(f"no variant {variant!r}; choose one of {', '.join(get_args(Variant))}")
    if budget_bytes < 1:
        raise ValueError(f"budget_bytes is {budget_bytes}; it must be positive")
    # A rank that holds a shard does not know where the vocabulary ends.
    _check_targets(targets_N, len(weight_VH) if head.shard is None else None)


def _check_targets(targets_N: Tensor, vocabulary: int | None) -> None:
    if len(targets_N) == 0:
        return
    least, most = (int(bound) for bound in targets_N.aminmax())
    if least < 0 or (vocabulary is not None and most >= vocabulary):
        wrong = least if least < 0 else most
        valid = "start at 0" if vocabulary is None else f"go from 0 to {vocabulary - 1}"
        raise ValueError(
            f"the target of token {int((targets_N == wrong).nonzero()[0])} is {wrong}; token ids {valid}, and tokens "
            "that are not scored must be left out"
        )
