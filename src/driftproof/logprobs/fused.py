"""The output layer's gradients, chunk by chunk of whole responses: logits, derivatives by token, both gradients.

That is three matrix products, where an operation of autograd needs all logits at a time or a fourth product. It serves
losses that are separable by response. A response whose logits do not fit the byte budget is a chunk of its own, and its
logits are computed twice, but for the last block; its gradients are the same.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from driftproof.logprobs import reference
from driftproof.logprobs.blocks import Blocks, GradientSum, HeadGradients
from driftproof.logprobs.head import Head, product_dtype
from driftproof.logprobs.operation import from_statistics
from driftproof.logprobs.values import TokenGradients, TokenValues
from driftproof.logprobs.variants import DEFAULT_BUDGET_BYTES, Variant, check_inputs, choose


@torch.no_grad()
def head_gradients(
    hidden_NH: Tensor,
    head: Head,
    targets_N: Tensor,
    lengths: Sequence[int],
    token_gradients: TokenGradients,
    *,
    want_entropy: bool = False,
    variant: Variant = "auto",
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    check_targets: bool = True,
) -> HeadGradients:
    """The gradients of a loss that is a sum over responses.

    `token_gradients` is called with each response once, in order, those without tokens too, and runs without autograd.
    Nothing is differentiated through: the caller hands the gradients on, with
    `torch.autograd.backward([hidden_NH, head.weight_VH], [gradients.hidden_NH, gradients.weight_VH])`.

    Args:
        lengths: tokens of each response, which lie one after the other in `hidden_NH` and `targets_N`.
        token_gradients: gets the log-probs (and the entropy) of the tokens of some responses, and returns the loss's
            derivative by each.
        The others are those of `token_logprobs`; variant `reference` is one chunk.

    Raises:
        ValueError: lengths that do not fit; `token_gradients` returned another shape, or gradients of an entropy that
            it did not ask for; see also `token_logprobs`.
    """
    check_inputs(hidden_NH, head, targets_N, variant, budget_bytes, check_targets)
    least = min(lengths, default=0)
    if least < 0 or sum(lengths) != len(hidden_NH):
        raise ValueError(f"lengths sum to {sum(lengths)}, the least {least}, of {len(hidden_NH)} tokens")
    variant = choose(variant, hidden_NH, head)
    starts = [0, *accumulate(lengths)]

    def weigh(scored: TokenValues, first: int, last: int) -> TokenValues:
        gradients = token_gradients(scored, slice(first, last), slice(starts[first], starts[last]))
        if gradients.entropy_N is not None and scored.entropy_N is None:
            raise ValueError("token_gradients returned gradients of the entropy; ask for it with want_entropy=True")
        for gradient_N in (gradients.logprobs_N, gradients.entropy_N):
            if gradient_N is not None and gradient_N.shape != scored.logprobs_N.shape:
                shapes = f"{list(gradient_N.shape)} for log-probs of shape {list(scored.logprobs_N.shape)}"
                raise ValueError(f"token_gradients returned gradients of shape {shapes}")
        return gradients

    if variant == "reference" and lengths:
        return _through_all_logits(hidden_NH, head, targets_N, len(lengths), weigh, want_entropy)
    dtype, triton = product_dtype(hidden_NH), variant == "triton"
    blocks = Blocks(hidden_NH, head, targets_N, dtype=dtype, triton=triton, budget_bytes=budget_bytes)
    bias = head.bias_V is not None and head.bias_V.requires_grad
    total = GradientSum(blocks, weight=head.weight_VH.requires_grad, bias=bias)
    for first, last in _chunks(lengths, blocks.size):
        tokens = starts[first], starts[last]
        statistics = blocks.statistics(*tokens, want_mean=want_entropy)
        gradients = weigh(from_statistics(statistics), first, last)
        blocks.add_gradients(*tokens, statistics.lse_N, statistics.mean_N, gradients, into=total)
    return total.result()


def _chunks(lengths: Sequence[int], size: int) -> list[tuple[int, int]]:
    """(first, last + 1) of neighboring responses with at most `size` tokens together, or one with more."""
    chunks: list[tuple[int, int]] = []
    first, tokens = 0, 0
    for response, length in enumerate(lengths):
        if tokens + length > size and response > first:
            chunks.append((first, response))
            first, tokens = response, 0
        tokens += length
    return [*chunks, (first, len(lengths))] if lengths else []


def _through_all_logits(
    hidden_NH: Tensor,
    head: Head,
    targets_N: Tensor,
    responses: int,
    weigh: Callable[[TokenValues, int, int], TokenValues],
    want_entropy: bool,
) -> HeadGradients:
    """One chunk, by autograd."""
    hidden_NH = hidden_NH.detach().requires_grad_()
    with torch.enable_grad():
        scored = reference.token_logprobs(hidden_NH, head, targets_N, want_entropy=want_entropy)
    weights = weigh(scored.map(Tensor.detach), 0, responses).fields
    outputs = {name: output_N for name, output_N in scored.fields.items() if name in weights}
    inputs = {"hidden_NH": hidden_NH, "weight_VH": head.weight_VH, "bias_V": head.bias_V}
    wanted = {name: tensor for name, tensor in inputs.items() if tensor is not None and tensor.requires_grad}
    slopes = [weights[name].to(output_N.dtype) for name, output_N in outputs.items()]
    found = torch.autograd.grad(list(outputs.values()), list(wanted.values()), slopes)
    return HeadGradients(**dict(zip(wanted, found, strict=True)))
