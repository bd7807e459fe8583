"""The head at work on blocks of tokens: logits, statistics and gradients of one block at a time, in one buffer.

The buffer is what the byte budget allows, and at least one token's logits. Beside it and the gradients that are
returned there is one tensor as large as the head at most: a copy in the dtype of the products where that is another, or
the transposed gradient, after the buffer was given back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol, cast

import torch
import torch.distributed
from torch import Tensor

from driftproof.logprobs import rows as torch_rows
from driftproof.logprobs.head import Head, VocabShard
from driftproof.logprobs.rows import RowStatistics
from driftproof.logprobs.values import TokenValues

_ROWS = torch.contiguous_format
# Bytes of one piece of the weight's gradient, where it is accumulated in another dtype than the product's.
_PIECE_BYTES = 2**25


class Rows(Protocol):
    """The elementwise work on a block: the modules `rows` and `triton_rows`."""

    row_statistics: Callable[..., RowStatistics]
    logit_gradients_: Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadGradients:
    """dL / d each input, in its shape and dtype; None where it requires no gradient."""

    hidden_NH: Tensor
    weight_VH: Tensor | None
    bias_V: Tensor | None


class Blocks:
    """N tokens and a head, in blocks of as many tokens as fit the byte budget."""

    def __init__(
        self, hidden_NH: Tensor, head: Head, targets_N: Tensor, *, dtype: torch.dtype, triton: bool, budget_bytes: int
    ) -> None:
        """`dtype` is that of the products, see `product_dtype`."""
        self.head = head
        self.rows = _triton_rows() if triton else cast(Rows, torch_rows)
        self.hidden_dtype = hidden_NH.dtype
        self.hidden_NH = hidden_NH.detach().to(dtype)
        self.weight_VH = head.weight_VH.detach().to(dtype)
        self.bias_V = None if head.bias_V is None else head.bias_V.detach().to(dtype)
        tokens = max(1, budget_bytes // (len(self.weight_VH) * dtype.itemsize))
        self.columns_N = targets_N
        if head.shard is not None:
            self.columns_N = _columns(targets_N, head.shard, len(self.weight_VH))
            tokens = _least_of_all_ranks(tokens, head.shard, hidden_NH.device)
        self.size = tokens
        """Tokens of a block; the same on every rank."""
        self._logits_NV = self.hidden_NH.new_empty((min(tokens, len(hidden_NH)), len(self.weight_VH)))
        self._filled: slice | None = None

    def statistics(self, first: int, last: int, *, want_mean: bool) -> RowStatistics:
        """Statistics of tokens first..last-1 over the whole vocabulary."""
        options = {"temperature": self.head.temperature, "softcap": self.head.softcap, "want_mean": want_mean}
        parts = [
            self.rows.row_statistics(self._logits(tokens), self.columns_N[tokens], **options)
            for tokens in self._split(first, last)
        ]
        joined = parts[0] if len(parts) == 1 else _join(parts, want_mean, like=self._logits_NV)
        return joined if self.head.shard is None else _over_ranks(joined, self.head.shard)

    def add_gradients(
        self, first: int, last: int, lse_N: Tensor, mean_N: Tensor | None, gradients: TokenValues, *, into: GradientSum
    ) -> None:
        """Add the gradients that tokens first..last-1 give, from statistics and derivatives of the loss by them."""
        # Backwards: the logits of the last block are those that `statistics` left in the buffer.
        for tokens in reversed(self._split(first, last)):
            here = slice(tokens.start - first, tokens.stop - first)
            logit_gradients_NV = self.rows.logit_gradients_(
                self._logits(tokens),
                self.columns_N[tokens],
                lse_N[here],
                gradients.map(itemgetter(here)),
                None if mean_N is None else mean_N[here],
                temperature=self.head.temperature,
                softcap=self.head.softcap,
            )
            self._filled = None
            into.add(tokens, logit_gradients_NV)

    def free(self) -> None:
        """Give the buffer back."""
        self._filled, self._logits_NV = None, self._logits_NV.new_empty(0, 0)

    def _split(self, first: int, last: int) -> list[slice]:
        return [slice(start, min(start + self.size, last)) for start in range(first, last, self.size)]

    def _logits(self, tokens: slice) -> Tensor:
        logits_NV = self._logits_NV[: tokens.stop - tokens.start]
        if tokens != self._filled:
            hidden_NH, weight_HV = self.hidden_NH[tokens], self.weight_VH.T
            if self.bias_V is None:
                torch.mm(hidden_NH, weight_HV, out=logits_NV)
            else:
                torch.addmm(self.bias_V, hidden_NH, weight_HV, out=logits_NV)
            self._filled = tokens
        return logits_NV


class GradientSum:
    """The gradients of hidden states, weight and bias, summed over blocks that hold each token once.

    The weight's is summed in the weight's dtype, with one rounding a block, the bias' in float32 at least.
    """

    def __init__(self, blocks: Blocks, *, weight: bool, bias: bool) -> None:
        """`weight`, `bias`: gradients that are wanted beside that of the hidden states."""
        self._blocks = blocks
        self._hidden_NH = torch.empty_like(blocks.hidden_NH)
        weight_VH, bias_V = blocks.head.weight_VH, blocks.head.bias_V
        self._transposed = _better_transposed(blocks.hidden_NH, weight_VH)
        self._weight: Tensor | None = None
        if weight:
            self._weight = torch.empty_like(weight_VH.T if self._transposed else weight_VH, memory_format=_ROWS)
        self._bias_V: Tensor | None = None
        if bias and bias_V is not None:
            self._bias_V = torch.zeros_like(bias_V, dtype=torch.promote_types(bias_V.dtype, torch.float32))
        # The first block overwrites.
        self._started = False

    def add(self, tokens: slice, logit_gradients_NV: Tensor) -> None:
        """Add the gradients that some tokens give, from dL / d logits of them."""
        torch.mm(logit_gradients_NV, self._blocks.weight_VH, out=self._hidden_NH[tokens])
        if self._weight is not None:
            self._add_weight(self._weight, logit_gradients_NV, self._blocks.hidden_NH[tokens])
        if self._bias_V is not None:
            self._bias_V += torch.mm(logit_gradients_NV.new_ones(1, len(logit_gradients_NV)), logit_gradients_NV)[0]
        self._started = True

    def result(self) -> HeadGradients:
        """The hidden states' over all ranks; each rank has its own part of the weight and the bias.

        Ends the use of the blocks.
        """
        self._blocks.free()
        head, weight_VH = self._blocks.head, self._weight
        if weight_VH is not None and not self._started:
            weight_VH.zero_()
        if weight_VH is not None and self._transposed:
            weight_VH = _transposed(weight_VH)
        if head.shard is not None:
            torch.distributed.all_reduce(self._hidden_NH, group=head.shard.group)
        return HeadGradients(
            hidden_NH=self._hidden_NH.to(self._blocks.hidden_dtype),
            weight_VH=weight_VH,
            bias_V=None if self._bias_V is None or head.bias_V is None else self._bias_V.to(head.bias_V.dtype),
        )

    def _add_weight(self, weight: Tensor, logit_gradients_NV: Tensor, hidden_NH: Tensor) -> None:
        beta = 1 if self._started else 0
        if self._transposed:
            weight.addmm_(hidden_NH.T.contiguous(), logit_gradients_NV, beta=beta)
        elif weight.dtype == hidden_NH.dtype:
            weight.addmm_(logit_gradients_NV.T, hidden_NH, beta=beta)
        else:
            size = max(1, _PIECE_BYTES // (hidden_NH.itemsize * max(1, hidden_NH.shape[1])))
            for piece, columns in zip(weight.split(size), logit_gradients_NV.split(size, dim=1), strict=True):
                product = columns.T @ hidden_NH
                if self._started:
                    piece.add_(product)
                else:
                    piece.copy_(product)


def _better_transposed(hidden_NH: Tensor, weight_VH: Tensor) -> bool:
    """Whether to sum the transposed gradient of the weight.

    In bfloat16 oneDNN multiplies about twice as fast where it need not transpose a large factor; from some H tokens on
    that saves more than the transposition at the end costs.
    """
    same = hidden_NH.dtype == weight_VH.dtype == torch.bfloat16
    return same and hidden_NH.device.type == "cpu" and len(hidden_NH) >= hidden_NH.shape[1]


def _transposed(weight_HV: Tensor) -> Tensor:
    """In pieces: torch would copy the whole on one thread."""
    weight_VH = weight_HV.new_empty(weight_HV.shape[::-1])
    for piece_VH, piece_HV in zip(weight_VH.split(4096), weight_HV.split(4096, dim=1), strict=True):
        piece_VH.copy_(piece_HV.T)
    return weight_VH


def _triton_rows() -> Rows:
    from driftproof.logprobs import triton_rows

    return cast(Rows, triton_rows)


def _columns(targets_N: Tensor, shard: VocabShard, vocabulary: int) -> Tensor:
    """The column of each target in this rank's shard; -1 where it lies in another."""
    columns_N = targets_N - shard.first
    return columns_N.where((columns_N >= 0) & (columns_N < vocabulary), -1)


def _least_of_all_ranks(number: int, shard: VocabShard, device: torch.device) -> int:
    least = torch.tensor(number, device=device)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group=shard.group)
    return int(least)


def _join(parts: list[RowStatistics], want_mean: bool, *, like: Tensor) -> RowStatistics:
    none = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
    means = [part.mean_N for part in parts if part.mean_N is not None]
    return RowStatistics(
        lse_N=torch.cat([none, *(part.lse_N for part in parts)]),
        target_N=torch.cat([none, *(part.target_N for part in parts)]),
        mean_N=torch.cat([none, *means]) if want_mean else None,
    )


def _over_ranks(local: RowStatistics, shard: VocabShard) -> RowStatistics:
    """The statistics of the whole vocabulary from those of this rank's shard."""
    mine = torch.stack([local.lse_N, local.target_N, *([] if local.mean_N is None else [local.mean_N])])
    all_ranks = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(shard.group))]
    torch.distributed.all_gather(all_ranks, mine, group=shard.group)
    lse_RN, target_RN, *mean_RN = torch.stack(all_ranks, dim=1)
    lse_N = lse_RN.logsumexp(0)
    mean_N = (mean_RN[0] * (lse_RN - lse_N).exp()).sum(0) if mean_RN else None
    return RowStatistics(lse_N=lse_N, target_N=target_RN.sum(0), mean_N=mean_N)
