"""Objectives that clip the ratio: GRPO, Dr. GRPO, GSPO, M2PO.

Notation: rho the ratio of a token (see `behavior_corrected`), A the advantage of its response. Clipping stops the push,
never the way back: a good token is no longer raised above the upper bound, a bad one no longer lowered under the lower.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from driftproof.errors import ObjectiveError
from driftproof.objectives.behavior_corrected import BehaviorCorrected, exponential
from driftproof.objectives.objective import (
    MAX_LOG_RATIO,
    Aggregation,
    AtLeastOne,
    NonNegative,
    Share,
    TokenLosses,
    only_per_response_means,
)
from driftproof.objectives.responses import Responses


def clipped_losses(batch: Responses, ratio_N: Tensor, advantage_N: Tensor, low: float, high: float) -> TokenLosses:
    """-min(rho A, clip(rho, low, high) A) per token, and the shares of tokens that the clip stops.

    Source: arXiv 1707.06347, Eq. 7.
    """
    losses_N = torch.maximum(-ratio_N * advantage_N, -ratio_N.clamp(low, high) * advantage_N)
    ratio_N = ratio_N.detach()
    shares = {
        "clipped_high_share": batch.share_of_tokens((advantage_N > 0) & (ratio_N > high)),
        "clipped_low_share": batch.share_of_tokens((advantage_N < 0) & (ratio_N < low)),
    }
    return TokenLosses(losses_N, shares)


def cap_negatives(losses_N: Tensor, advantage_N: Tensor, dual_clip: float) -> Tensor:
    """Losses that are at most -dual_clip A where A < 0, and there without gradient; arXiv 1912.09729, Eq. 5."""
    return torch.where(advantage_N < 0, losses_N.minimum(-dual_clip * advantage_N), losses_N)


@dataclass(frozen=True, kw_only=True)
class GRPO(BehaviorCorrected):
    """Clipped ratio: token loss -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A).

    Source: arXiv 2402.03300, Eq. 3, without its KL term (see `kl`). `clip_high` 0.28 is clip-higher (arXiv 2503.14476).
    For A < 0 the loss is capped at -dual_clip A (arXiv 1912.09729, Eq. 5; 3 is verl's default). The paper's aggregation
    is the default here; verl's and DAPO's is `token-mean`. Division of the advantage by the group's standard deviation,
    as in the paper, is a choice of `driftproof.objectives.advantages`.
    """

    name: ClassVar[str] = "grpo"
    clip_low: Share = 0.2
    clip_high: NonNegative = 0.2
    dual_clip: AtLeastOne = 3.0
    """Largest ratio that a negative response is charged for; infinity is off."""

    def ratio_losses(self, batch: Responses, log_ratio_N: Tensor) -> TokenLosses:
        advantage_N = batch.per_token(batch.advantages_R)
        ratio_N = exponential(log_ratio_N)
        losses_N, metrics = clipped_losses(batch, ratio_N, advantage_N, 1 - self.clip_low, 1 + self.clip_high)
        return TokenLosses(cap_negatives(losses_N, advantage_N, self.dual_clip), metrics)


@dataclass(frozen=True, kw_only=True)
class DrGRPO(GRPO):
    """GRPO without its length bias: the same token loss, summed and divided by a constant.

    Source: arXiv 2503.20783, Sec. 3.2: advantages without division by the standard deviation (the default baseline of
    `driftproof.objectives.advantages`), and tokens summed over a response, not averaged. The constant is `horizon`;
    the paper's code takes the longest response allowed, and so does `driftproof train` where it is not given.
    """

    name: ClassVar[str] = "dr-grpo"
    aggregation: Aggregation = "seq-mean-token-sum-norm"


@dataclass(frozen=True, kw_only=True)
class GSPO(BehaviorCorrected):
    """One ratio per response: loss -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = exp(mean_t log rho_t).

    Source: arXiv 2507.18071, Eq. 5-7; the clips of 3e-4 and 4e-4 are its experiments'. Written token by token with
    s_t = sg(s) pi_t / sg(pi_t) (its Eq. 13-14), which has the same value and gradient. The formula fixes the
    aggregation to `seq-mean-token-mean`.
    """

    name: ClassVar[str] = "gspo"
    clip_low: Share = 3e-4
    clip_high: NonNegative = 4e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        only_per_response_means(self, "a response has one ratio")

    def ratio_losses(self, batch: Responses, log_ratio_N: Tensor) -> TokenLosses:
        # The token's own log-ratio cancels in the value and stays in the gradient.
        mean_N = batch.per_token(batch.mean_per_response(log_ratio_N))
        ratio_N = exponential(mean_N + (log_ratio_N - log_ratio_N.detach()))
        advantage_N = batch.per_token(batch.advantages_R)
        return clipped_losses(batch, ratio_N, advantage_N, 1 - self.clip_low, 1 + self.clip_high)


@dataclass(frozen=True, kw_only=True)
class M2PO(BehaviorCorrected):
    """Clipped ratio, with the clip chosen per step so that the second moment of log rho stays within `budget`.

    Harmful tokens are those that have moved further than their response's sign wants: A > 0 and rho > 1, or A < 0 and
    rho < 1. t is the cap for which the mean over them of min((log rho)^2, t^2) is the budget; the clip is [e^-t, e^t],
    but never tighter than [least_low, least_high]. Token loss -min(rho A, clip(rho) A).

    Source: arXiv 2510.01161, budget 0.04; that only harmful tokens count, and the least clip of [0.7, 1.5], are its
    code's. That code takes t from the observed ratios; we solve for it exactly. The cap depends on every token of the
    step, so the objective is not separable: it must be given whole steps.
    """

    name: ClassVar[str] = "m2po"
    separable: ClassVar[bool] = False
    aggregation: Aggregation = "token-mean"
    budget: NonNegative = 0.04
    """Largest mean of (log rho)^2 over harmful tokens."""
    least_low: Share = 0.7
    """The lower clip is at most this."""
    least_high: AtLeastOne = 1.5
    """The upper clip is at least this."""

    def ratio_losses(self, batch: Responses, log_ratio_N: Tensor) -> TokenLosses:
        if len(batch.lengths_R) != batch.total_responses or len(batch.logprobs_N) != batch.total_tokens:
            raise ObjectiveError(
                f"m2po needs the whole step at once, to find its clip; got {len(batch.logprobs_N)} of "
                f"{batch.total_tokens} tokens. Score every micro-batch without gradient first, as the learner does, "
                "or use an objective that is separable"
            )
        advantage_N = batch.per_token(batch.advantages_R)
        moved_N = log_ratio_N.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        harmful_N = moved_N * advantage_N > 0
        cap = capped_second_moment(moved_N[harmful_N].square(), self.budget).sqrt()
        low = min(float((-cap).exp()), self.least_low)
        high = max(float(cap.exp()), self.least_high)
        losses_N, metrics = clipped_losses(batch, exponential(log_ratio_N), advantage_N, low, high)
        second_moment = (moved_N.square() * harmful_N).sum() / harmful_N.sum().clamp(min=1)
        return TokenLosses(losses_N, metrics | {"second_moment": second_moment, "clip_high": cap.new_tensor(high)})


def capped_second_moment(squares_M: Tensor, budget: float) -> Tensor:
    """The cap c for which mean(min(squares, c)) is `budget`; the largest square where the mean is within it."""
    if not len(squares_M):
        return squares_M.new_zeros(())
    ascending_M = squares_M.sort().values
    below_M = ascending_M.cumsum(0) - ascending_M
    left_M = len(squares_M) - torch.arange(len(squares_M), device=squares_M.device)
    # With the cap at the k-th square, the k smaller ones count in full and the others count as it.
    too_much_M = below_M + ascending_M * left_M > budget * len(squares_M)
    if not bool(too_much_M.any()):
        return ascending_M[-1]
    k = int(too_much_M.int().argmax())
    return (budget * len(squares_M) - below_M[k]) / left_M[k]
