"""What an objective sees: whole responses, packed flat, with the counts of the entire optimizer step.

A response is never split: all its tokens are in the same `Responses`. The two totals count the whole step, so the
losses of micro-batches or shards add up to the loss of the step, whatever the split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_LOGPROB = 1e-3
"""Nats; a log-softmax may round to slightly above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """R responses of N tokens in total.

    Two responses of 2 and 1 tokens: `logprobs_N=[-.1, -.5, -2.], segment_N=[0, 0, 1], lengths_R=[2, 1]`.
    Build one from padded tensors with `from_padded`.
    """

    logprobs_N: Tensor
    """float32 or float64 [N]: log-probs of the sampled tokens under the current policy, in nats, with gradient."""
    segment_N: Tensor
    """int64 [N]: which response (0..R-1) a token belongs to; ascending."""
    lengths_R: Tensor
    """int64 [R]: tokens per response; 0 is allowed, such a response contributes nothing but is counted."""
    advantages_R: Tensor
    """[R], same dtype as the log-probs."""
    group_R: Tensor
    """int64 [R]: which group a response belongs to."""
    total_responses: int
    """Responses in the whole optimizer step."""
    total_tokens: int
    """Response tokens in the whole optimizer step."""
    behavior_logprobs_N: Tensor | None = None
    """[N]: log-probs under the policy that sampled, for objectives that need them."""

    def __post_init__(self) -> None:
        if self.logprobs_N.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"log-probs are {self.logprobs_N.dtype}; half precision costs 1e-2 nat a token: "
                "compute the log-softmax in float32"
            )
        if self.behavior_logprobs_N is not None and self.behavior_logprobs_N.shape != self.logprobs_N.shape:
            raise ValueError(
                f"behavior_logprobs has shape {tuple(self.behavior_logprobs_N.shape)}, "
                f"the log-probs have {tuple(self.logprobs_N.shape)}"
            )
        if not len(self.advantages_R) == len(self.group_R) == len(self.lengths_R):
            raise ValueError(
                f"{len(self.lengths_R)} lengths, {len(self.advantages_R)} advantages and {len(self.group_R)} groups; "
                "each response needs one of each"
            )
        if self.total_responses < len(self.lengths_R) or self.total_tokens < len(self.logprobs_N):
            raise ValueError(
                f"the totals ({self.total_responses} responses, {self.total_tokens} tokens) are of the whole optimizer "
                f"step and cannot be below this part's ({len(self.lengths_R)}, {len(self.logprobs_N)})"
            )

    @classmethod
    def from_padded(
        cls,
        logprobs_RT: Tensor,
        mask_RT: Tensor,
        advantages_R: Tensor,
        behavior_logprobs: Tensor | None = None,
        group_R: Tensor | None = None,
        total_responses: int | None = None,
        total_tokens: int | None = None,
    ) -> Responses:
        """Pack padded tensors `[R, T]`; the mask is true (or nonzero) on response tokens.

        Without totals this is the whole optimizer step; without `group_R` all responses are one group.

        Raises:
            ValueError: shapes disagree, half-precision log-probs, an advantage that is not finite, or a log-prob that
                is not finite or positive where the mask is on.
        """
        if logprobs_RT.shape != mask_RT.shape or logprobs_RT.shape[:1] != advantages_R.shape:
            raise ValueError(
                f"expected logprobs [R, T], mask [R, T], advantages [R]; got {tuple(logprobs_RT.shape)}, "
                f"{tuple(mask_RT.shape)}, {tuple(advantages_R.shape)}"
            )
        if behavior_logprobs is not None and behavior_logprobs.shape != mask_RT.shape:
            raise ValueError(
                f"behavior_logprobs has shape {tuple(behavior_logprobs.shape)}, the mask has {tuple(mask_RT.shape)}"
            )
        if not bool(torch.isfinite(advantages_R).all()):
            raise ValueError(f"advantages must be finite; got {advantages_R[~torch.isfinite(advantages_R)][0].item()}")
        mask_RT = mask_RT.bool()
        lengths_R = mask_RT.sum(1)
        logprobs_N = _checked("log-probs", logprobs_RT[mask_RT])
        behavior_N = None if behavior_logprobs is None else _checked("behavior_logprobs", behavior_logprobs[mask_RT])
        responses = len(lengths_R)
        return cls(
            logprobs_N=logprobs_N,
            segment_N=torch.arange(responses, device=mask_RT.device).repeat_interleave(lengths_R),
            lengths_R=lengths_R,
            advantages_R=advantages_R.to(logprobs_N.dtype),
            group_R=torch.zeros_like(lengths_R) if group_R is None else group_R,
            total_responses=responses if total_responses is None else total_responses,
            total_tokens=int(lengths_R.sum()) if total_tokens is None else total_tokens,
            behavior_logprobs_N=None if behavior_N is None else behavior_N.to(logprobs_N.dtype),
        )

    def sum_per_response(self, values_N: Tensor) -> Tensor:
        """[N] -> [R], the sum over each response's tokens."""
        return values_N.new_zeros(len(self.lengths_R)).index_add(0, self.segment_N, values_N)

    def mean_per_response(self, values_N: Tensor) -> Tensor:
        """[N] -> [R], the mean over each response's tokens; 0 for an empty response."""
        return self.sum_per_response(values_N) / self.lengths_R.clamp(min=1)

    def per_token(self, values_R: Tensor) -> Tensor:
        """[R] -> [N], each response's value at each of its tokens."""
        return values_R[self.segment_N]


def _checked(name: str, logprobs_N: Tensor) -> Tensor:
    """Refuse what cannot be the log-prob of a sampled token; above 0 a rounding error is allowed."""
    bad = ~(torch.isfinite(logprobs_N) & (logprobs_N <= LARGEST_LOGPROB))
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} {name} under the mask are not finite or positive (first: {logprobs_N[bad][0].item()}); "
            "the log-prob of a sampled token is finite and at most 0, so look at the mask, the sign and the logits"
        )
    return logprobs_N
