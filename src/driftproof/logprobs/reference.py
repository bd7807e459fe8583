"""Log-probs of given tokens from hidden states, the plain way: the oracle for every faster variant.

Holds the logits [N, V] and leaves the gradients to autograd. From the logits on everything is float32 (float64 where
the hidden states are); half-precision hidden states or heads, and autocast, round the logits themselves, which costs up
to 1e-2 nat a token.
"""

import torch
from torch import Tensor

from driftproof.logprobs.head import Head, product_dtype
from driftproof.logprobs.values import TokenValues


def token_logprobs(hidden_NH: Tensor, head: Head, targets_N: Tensor, *, want_entropy: bool = False) -> TokenValues:
    """log softmax(z) at the targets, and the entropy of softmax(z) if asked for, both with gradient."""
    dtype = product_dtype(hidden_NH)
    bias_V = None if head.bias_V is None else head.bias_V.to(dtype)
    logits_NV = torch.nn.functional.linear(hidden_NH.to(dtype), head.weight_VH.to(dtype), bias_V)
    if dtype != torch.float64:
        logits_NV = logits_NV.float()
    if head.softcap is not None:
        logits_NV = head.softcap * torch.tanh(logits_NV / head.softcap)
    if head.temperature != 1.0:
        logits_NV = logits_NV / head.temperature
    distribution_NV = torch.log_softmax(logits_NV, dim=-1)
    entropy_N = None
    if want_entropy:
        # exp(-1e6) is 0: an impossible token has neither entropy nor gradient, and 0 * -inf would be NaN.
        possible_NV = distribution_NV.clamp_min(-1e6)
        entropy_N = -(distribution_NV.exp() * possible_NV).sum(-1)
    return TokenValues(logprobs_N=distribution_NV.gather(-1, targets_N[:, None]).squeeze(-1), entropy_N=entropy_N)
