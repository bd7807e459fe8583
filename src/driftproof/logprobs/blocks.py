"""The head at work on blocks of tokens: logits, statistics and gradients of one block at a time, in one buffer.

The buffer is what the byte budget allows, and at least one token's logits. Beside it and the gradients that are
returned there is one tensor as large as the head at most: a copy in the dtype of the products where that is another, or
the transposed gradient, after the buffer was given back.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from operator import itemgetter

import torch
from torch import Tensor

from driftproof.logprobs.head import Head
from driftproof.logprobs.rows import RowStatistics
from driftproof.logprobs.values import TokenValues

# Bytes of one piece of the weight's gradient, where it is accumulated in another dtype than the product's.
_PIECE_BYTES = 2**25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadGradients:
    """dL / d each input, in its shape and dtype; None where it requires no gradient."""

    hidden_NH: Tensor
    weight_VH: Tensor | None = None
    bias_V: Tensor | None = None


class Blocks:
    """N tokens and a head, in blocks of as many tokens as fit the byte budget."""

    def __init__(
        self, hidden_NH: Tensor, head: Head, targets_N: Tensor, *, dtype: torch.dtype, triton: bool, budget_bytes: int
    ) -> None:
        """`dtype` is that of the products, see `product_dtype`."""
        self.head = head
        # The elementwise work on a block: two modules with the same functions.
        self._rows = import_module(f"driftproof.logprobs.{'triton_rows' if triton else 'rows'}")
        self._targets_N = targets_N
        self.hidden_dtype = hidden_NH.dtype
        self.hidden_NH = hidden_NH.detach().to(dtype)
        self.weight_VH = head.weight_VH.detach().to(dtype)
        self.bias_V = None if head.bias_V is None else head.bias_V.detach().to(dtype)
        self.size = max(1, budget_bytes // (len(self.weight_VH) * dtype.itemsize))
        """Tokens of a block."""
        self._logits_NV = self.hidden_NH.new_empty((min(self.size, len(hidden_NH)), len(self.weight_VH)))
        self._filled: slice | None = None

    def statistics(self, first: int, last: int, *, want_mean: bool) -> RowStatistics:
        """Statistics of tokens first..last-1."""
        options = {"temperature": self.head.temperature, "softcap": self.head.softcap, "want_mean": want_mean}
        parts: list[RowStatistics] = [
            self._rows.row_statistics(self._logits(tokens), self._targets_N[tokens], **options)
            for tokens in self._split(first, last)
        ]
        if len(parts) == 1:
            return parts[0]
        none = self._logits_NV.new_empty(0, dtype=torch.promote_types(self._logits_NV.dtype, torch.float32))
        means = [part.mean_N for part in parts if part.mean_N is not None]
        return RowStatistics(
            lse_N=torch.cat([none, *(part.lse_N for part in parts)]),
            target_N=torch.cat([none, *(part.target_N for part in parts)]),
            mean_N=torch.cat([none, *means]) if want_mean else None,
        )

    def add_gradients(
        self, first: int, last: int, lse_N: Tensor, mean_N: Tensor | None, gradients: TokenValues, *, into: GradientSum
    ) -> None:
        """Add the gradients that tokens first..last-1 give, from statistics and derivatives of the loss by them."""
        # Backwards: the logits of the last block are those that `statistics` left in the buffer.
        for tokens in reversed(self._split(first, last)):
            here = slice(tokens.start - first, tokens.stop - first)
            logit_gradients_NV = self._rows.logit_gradients_(
                self._logits(tokens),
                self._targets_N[tokens],
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
            like = weight_VH.T if self._transposed else weight_VH
            self._weight = torch.empty_like(like, memory_format=torch.contiguous_format)
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
        """The sums, in the dtypes of the inputs; ends the use of the blocks."""
        self._blocks.free()
        weight_VH, bias_V = self._weight, self._blocks.head.bias_V
        if weight_VH is not None and not self._started:
            weight_VH.zero_()
        if weight_VH is not None and self._transposed:
            weight_VH = _transposed(weight_VH)
        if bias_V is not None:
            bias_V = None if self._bias_V is None else self._bias_V.to(bias_V.dtype)
        hidden_NH = self._hidden_NH.to(self._blocks.hidden_dtype)
        return HeadGradients(hidden_NH=hidden_NH, weight_VH=weight_VH, bias_V=bias_V)

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
