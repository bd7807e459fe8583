"""Log-probs of given tokens from hidden states, as an operation of autograd.

All variants agree to rounding. Only `reference` ever holds the logits [N, V]; the others keep the inputs and two or
three numbers a token for the backward pass, which computes the logits once more, block by block.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from driftproof.logprobs import reference
from driftproof.logprobs.blocks import Blocks, GradientSum
from driftproof.logprobs.head import Head, product_dtype
from driftproof.logprobs.rows import RowStatistics
from driftproof.logprobs.values import TokenValues
from driftproof.logprobs.variants import DEFAULT_BUDGET_BYTES, Variant, check_inputs, choose


def token_logprobs(
    hidden_NH: Tensor,
    head: Head,
    targets_N: Tensor,
    *,
    want_entropy: bool = False,
    variant: Variant = "auto",
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    check_targets: bool = True,
) -> TokenValues:
    """Log-probs of `targets_N` and, if asked for, the entropy of the whole distribution, both differentiable.

    The logits are computed in the dtype of the hidden states, or autocast's where it is on; everything after them in
    float32, or float64 where the hidden states are.

    Args:
        targets_N: token ids, int64 [N].
        budget_bytes: most bytes of logits at a time, but at least one token's.
        check_targets: looks at the targets, and waits for the GPU to do so; False where they are known to be token ids.

    Raises:
        ValueError: shapes, dtypes or devices that do not agree, a target outside the vocabulary, an unknown variant, a
            budget that is not positive.
    """
    check_inputs(hidden_NH, head, targets_N, variant, budget_bytes, check_targets)
    variant = choose(variant, hidden_NH, head)
    if variant == "reference":
        return reference.token_logprobs(hidden_NH, head, targets_N, want_entropy=want_entropy)
    logprobs_N, entropy_N = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight_VH, head.bias_V, targets_N, head, want_entropy, variant == "triton", budget_bytes
    )
    return TokenValues(logprobs_N=logprobs_N, entropy_N=entropy_N)


def from_statistics(statistics: RowStatistics) -> TokenValues:
    """Log-probs and entropy of tokens whose rows are known; rounding makes neither positive nor negative."""
    return TokenValues(
        logprobs_N=(statistics.target_N - statistics.lse_N).clamp_max_(0),
        entropy_N=None if statistics.mean_N is None else (statistics.lse_N - statistics.mean_N).clamp_min_(0),
    )


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: Head,
        want_entropy: bool,
        triton: bool,
        budget_bytes: int,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = product_dtype(hidden_NH)
        blocks = Blocks(hidden_NH, head, targets_N, dtype=dtype, triton=triton, budget_bytes=budget_bytes)
        statistics = blocks.statistics(0, len(hidden_NH), want_mean=want_entropy)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, statistics.lse_N, statistics.mean_N)
        ctx.head, ctx.triton, ctx.budget_bytes, ctx.dtype = head, triton, budget_bytes, dtype
        ctx.set_materialize_grads(False)
        scored = from_statistics(statistics)
        return scored.logprobs_N, scored.entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logprobs_N: Tensor | None, entropy_N: Tensor | None) -> tuple[Tensor | None, ...]:
        if logprobs_N is None and entropy_N is None:
            return (None,) * 8
        hidden_NH, weight_VH, bias_V, targets_N, lse_N, mean_N = ctx.saved_tensors
        head = replace(ctx.head, weight_VH=weight_VH, bias_V=bias_V)
        blocks = Blocks(hidden_NH, head, targets_N, dtype=ctx.dtype, triton=ctx.triton, budget_bytes=ctx.budget_bytes)
        total = GradientSum(blocks, weight=ctx.needs_input_grad[1], bias=ctx.needs_input_grad[2])
        weights_N = torch.zeros_like(lse_N) if logprobs_N is None else logprobs_N
        weights = TokenValues(logprobs_N=weights_N, entropy_N=entropy_N)
        blocks.add_gradients(0, len(hidden_NH), lse_N, mean_N, weights, into=total)
        gradients = total.result()
        return gradients.hidden_NH, gradients.weight_VH, gradients.bias_V, None, None, None, None, None
