"""Log-probs of given tokens from hidden states, the plain way: the oracle for every faster variant.

Holds the logits [N, V]. From the logits on everything is float32; half-precision hidden states or heads, and autocast,
round the logits themselves, which costs up to 1e-2 nat a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """What the operation returns for N tokens."""

    logprobs_N: Tensor
    """float32 [N], nats, with gradient."""
    entropy_N: Tensor | None
    """float32 [N], nats, of the whole distribution, without gradient; None unless asked for."""


def token_logprobs(
    hidden_NH: Tensor,
    head_VH: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    want_entropy: bool = False,
) -> TokenLogprobs:
    """log softmax(f(hidden head^T + bias) / temperature) at the targets.

    f is softcap * tanh(. / softcap) where the model caps its logits, else the identity. The product is computed in the
    dtype of the inputs, everything after it in float32.
    """
    logits_NV = torch.nn.functional.linear(hidden_NH, head_VH, bias_V).float()
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    distribution_NV = torch.log_softmax(logits_NV, dim=-1)
    entropy_N = None
    if want_entropy:
        with torch.no_grad():
            entropy_N = torch.special.entr(distribution_NV.exp()).sum(-1)
    return TokenLogprobs(
        logprobs_N=distribution_NV.gather(-1, targets_N[:, None]).squeeze(-1),
        entropy_N=entropy_N,
    )
