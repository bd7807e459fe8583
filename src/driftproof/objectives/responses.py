"""The input of an objective: whole responses, packed flat, with the counts of the entire optimizer step.

A response is never split over micro-batches: all its tokens are in the same `Responses`. The totals count the whole
step, so the losses of micro-batches or shards add up to the loss of the step, whatever the split. Only where ranks hold
parts of the same response (context parallelism) is a response split, and then `sum_over_ranks` puts it together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LARGEST_LOGPROB = 1e-3
"""Nats; a log-softmax may round to slightly above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """R responses of N tokens in total.

    Two responses of 2 and 1 tokens: `logprobs_N=[-.1, -.5, -2.], segment_N=[0, 0, 1], lengths_R=[2, 1]`.
    Build one from padded tensors with `from_padded`. Which of the optional channels must be there is what an
    objective's `needs` says.
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
    total_valid_responses: int | None = None
    """Responses of the whole step in groups whose advantages are not all 0; `gpg` scales by it."""
    total_nonzero_rewards: int | None = None
    """Responses of the whole step whose reward is not 0; `gpg` can scale by it."""
    rewards_R: Tensor | None = None
    """[R], NaN where verification failed; for `ppo`, and so that `asymre` leaves such responses alone."""
    behavior_logprobs_N: Tensor | None = None
    """[N]: log-probs under the policy that sampled."""
    proximal_logprobs_N: Tensor | None = None
    """[N]: log-probs under the policy at the start of the step."""
    reference_logprobs_N: Tensor | None = None
    """[N]: log-probs under the policy that a KL term pulls to."""
    entropy_N: Tensor | None = None
    """[N]: entropy of the current policy where each token was drawn, nats, with gradient."""
    values_N: Tensor | None = None
    """[N]: the critic's value before each token, with gradient."""
    old_values_N: Tensor | None = None
    """[N]: the values at the start of the step; None where they are the current ones."""
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None
    """Adds a tensor [R] up over the ranks that hold parts of these responses. `lengths_R` are then those of the whole
    responses, all [N] are of this rank's part, and the ranks' losses and gradients add up to the step's."""

    def __post_init__(self) -> None:
        if self.logprobs_N.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"log-probs are {self.logprobs_N.dtype}; half precision costs 1e-2 nat a token")
        for name in TOKEN_CHANNELS:
            channel_N = getattr(self, f"{name}_N")
            if channel_N is not None and channel_N.shape != self.logprobs_N.shape:
                shape, expected = tuple(channel_N.shape), tuple(self.logprobs_N.shape)
                raise ValueError(f"{name} has shape {shape}, the log-probs have {expected}")
        lengths, advantages, groups = len(self.lengths_R), len(self.advantages_R), len(self.group_R)
        rewards = lengths if self.rewards_R is None else len(self.rewards_R)
        if not lengths == advantages == groups == rewards:
            given = f"{lengths} lengths, {advantages} advantages, {groups} groups and {rewards} rewards"
            raise ValueError(f"{given}; each response needs one of each")
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
        *,
        proximal_logprobs: Tensor | None = None,
        reference_logprobs: Tensor | None = None,
        entropy: Tensor | None = None,
        values: Tensor | None = None,
        old_values: Tensor | None = None,
        rewards_R: Tensor | None = None,
        group_R: Tensor | None = None,
        total_responses: int | None = None,
        total_tokens: int | None = None,
        total_valid_responses: int | None = None,
        total_nonzero_rewards: int | None = None,
    ) -> Responses:
        """Pack padded tensors `[R, T]`; the mask is true (or nonzero) on response tokens.

        Without totals this is the whole optimizer step; without `group_R` all responses are one group.

        Raises:
            ValueError: shapes disagree, half-precision log-probs, an advantage that is not finite or an infinite
                reward, one total without the other, or, where the mask is on, a channel that is not finite or a
                log-prob that is positive.
        """
        if logprobs_RT.shape != mask_RT.shape or logprobs_RT.shape[:1] != advantages_R.shape:
            raise ValueError(
                f"expected logprobs [R, T], mask [R, T], advantages [R]; got {tuple(logprobs_RT.shape)}, "
                f"{tuple(mask_RT.shape)}, {tuple(advantages_R.shape)}"
            )
        if not bool(torch.isfinite(advantages_R).all()):
            raise ValueError(f"advantages must be finite; got {advantages_R[~torch.isfinite(advantages_R)][0].item()}")
        if rewards_R is not None and bool(rewards_R.isinf().any()):
            raise ValueError("rewards must be finite, or NaN where a response has none; got an infinite one")
        if (total_responses is None) != (total_tokens is None):
            raise ValueError(
                f"total_responses is {total_responses} and total_tokens is {total_tokens}; give both for a part of an "
                "optimizer step, and neither for a whole one"
            )
        mask_RT = mask_RT.bool()
        lengths_R = mask_RT.sum(1)
        logprobs_N = _logprobs("log-probs", logprobs_RT[mask_RT])
        given = (behavior_logprobs, proximal_logprobs, reference_logprobs, entropy, values, old_values)
        channels: dict[str, Any] = {}
        for name, channel_RT in zip(TOKEN_CHANNELS, given, strict=True):
            if channel_RT is not None:
                packed_N = _packed(name, channel_RT, mask_RT).to(logprobs_N.dtype)
                channels[f"{name}_N"] = packed_N if name in TRAINED_CHANNELS else packed_N.detach()
        group_R = torch.zeros_like(lengths_R) if group_R is None else group_R
        if total_responses is None:
            total_valid_responses = count_valid_responses(advantages_R, group_R)
            if rewards_R is not None:
                total_nonzero_rewards = count_nonzero_rewards(rewards_R)
        return cls(
            logprobs_N=logprobs_N,
            segment_N=torch.arange(len(lengths_R), device=mask_RT.device).repeat_interleave(lengths_R),
            lengths_R=lengths_R,
            advantages_R=advantages_R.to(logprobs_N.dtype),
            group_R=group_R,
            total_responses=len(lengths_R) if total_responses is None else total_responses,
            total_tokens=int(lengths_R.sum()) if total_tokens is None else total_tokens,
            total_valid_responses=total_valid_responses,
            total_nonzero_rewards=total_nonzero_rewards,
            rewards_R=None if rewards_R is None else rewards_R.to(logprobs_N.dtype),
            **channels,
        )

    def sum_per_response(self, values_N: Tensor) -> Tensor:
        """[N] -> [R], the sum over each response's tokens (over all ranks that hold some), without gradient."""
        values_N = values_N.detach()
        sums_R = values_N.new_zeros(len(self.lengths_R)).index_add(0, self.segment_N, values_N)
        return sums_R if self.sum_over_ranks is None else self.sum_over_ranks(sums_R)

    def mean_per_response(self, values_N: Tensor) -> Tensor:
        """[N] -> [R], the mean over each response's tokens, without gradient; 0 for an empty response."""
        return self.sum_per_response(values_N) / self.lengths_R.clamp(min=1)

    def per_token(self, values_R: Tensor) -> Tensor:
        """[R] -> [N], each response's value at each of its tokens."""
        return values_R[self.segment_N]

    def share_of_tokens(self, chosen_N: Tensor) -> Tensor:
        """bool [N] -> scalar: this part's share of the step's tokens."""
        return chosen_N.sum() / max(self.total_tokens, 1)


TOKEN_CHANNELS = ("behavior_logprobs", "proximal_logprobs", "reference_logprobs", "entropy", "values", "old_values")
"""The optional inputs of one value per token, in the order of `from_padded`."""
TRAINED_CHANNELS = ("entropy", "values")
"""Channels that may carry a gradient; `from_padded` detaches the others, which belong to policies that stand still."""


def count_valid_responses(advantages_R: Tensor, group_R: Tensor) -> int:
    """Responses in groups whose advantages are not all 0."""
    groups = int(group_R.max()) + 1 if len(group_R) else 0
    teaches = torch.zeros(groups, device=group_R.device).index_add(0, group_R, (advantages_R != 0).float())
    return int((teaches[group_R] > 0).sum())


def count_nonzero_rewards(rewards_R: Tensor) -> int:
    """Responses whose reward is there and not 0."""
    return int((rewards_R.nan_to_num() != 0).sum())


def _packed(name: str, channel_RT: Tensor, mask_RT: Tensor) -> Tensor:
    if channel_RT.shape != mask_RT.shape:
        raise ValueError(f"{name} has shape {tuple(channel_RT.shape)}, the mask has {tuple(mask_RT.shape)}")
    packed_N = channel_RT[mask_RT]
    if name.endswith("logprobs"):
        return _logprobs(name, packed_N)
    if not bool(torch.isfinite(packed_N).all()):
        raise ValueError(f"{name} must be finite under the mask; got {packed_N[~torch.isfinite(packed_N)][0].item()}")
    return packed_N


def _logprobs(name: str, logprobs_N: Tensor) -> Tensor:
    """Refuse what cannot be the log-prob of a sampled token; above 0 a rounding error is allowed."""
    bad = ~(torch.isfinite(logprobs_N) & (logprobs_N <= LARGEST_LOGPROB))
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} {name} under the mask are not finite or positive (first: {logprobs_N[bad][0].item()}); "
            "the log-prob of a sampled token is finite and at most 0, so look at the mask, the sign and the logits"
        )
    return logprobs_N
