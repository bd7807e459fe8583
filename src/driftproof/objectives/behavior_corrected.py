"""Shared by objectives with behavior log-probs: the ratio, and the correction between proximal and behavior policy.

Notation of the rooms beside this one: mu the behavior policy, rho = pi / mu per token, A the advantage of a response.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from driftproof.objectives.objective import MAX_LOG_RATIO, AtLeastOne, Objective, Share, TokenLosses
from driftproof.objectives.responses import Responses
from driftproof.types import Channel

Correction = Literal["none", "truncate", "mask"]
CorrectionLevel = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True)
class BehaviorCorrected(Objective):
    """An objective whose ratio is taken to the policy that sampled, or to a proximal policy near the current one.

    With `correction` "none" the ratio rho is pi / mu. Otherwise the ratio is pi / prox, prox the policy at the start of
    the step, and each token's loss is multiplied by w = prox / mu without gradient: "truncate" takes
    min(w, correction_high), "mask" takes w where correction_low <= w <= correction_high and 0 elsewhere.
    `correction_level` "sequence" takes the product of w over the response instead of the token's own.

    Source: decoupled PPO, arXiv 2110.00641 and 2505.24298, Eq. 5; truncation at 2 is verl's and TRL's default; masking
    is arXiv 2510.18855 (whose bounds are 0.5 and 5), 0.5 and 2 are TRL's.
    """

    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.BEHAVIOR_LOGPROBS})
    correction: Correction = "none"
    correction_level: CorrectionLevel = "token"
    correction_low: Share = 0.5
    """Lower bound of w under "mask"."""
    correction_high: AtLeastOne = 2.0
    """Upper bound of w."""

    @property
    def needs(self) -> frozenset[Channel]:
        return super().needs | (set() if self.correction == "none" else {Channel.PROXIMAL_LOGPROBS})

    def token_losses(self, batch: Responses) -> TokenLosses:
        assert batch.behavior_logprobs_N is not None
        if self.correction == "none":
            return self.ratio_losses(batch, batch.logprobs_N - batch.behavior_logprobs_N)
        assert batch.proximal_logprobs_N is not None
        losses_N, metrics = self.ratio_losses(batch, batch.logprobs_N - batch.proximal_logprobs_N)
        weight_N, corrected_N = self._correct(batch, batch.proximal_logprobs_N - batch.behavior_logprobs_N)
        return TokenLosses(losses_N * weight_N, metrics | {"corrected_share": batch.share_of_tokens(corrected_N)})

    @abstractmethod
    def ratio_losses(self, batch: Responses, log_ratio_N: Tensor) -> TokenLosses:
        """The loss of each token, given the log of its ratio (with gradient)."""

    def _correct(self, batch: Responses, log_weight_N: Tensor) -> tuple[Tensor, Tensor]:
        if self.correction_level == "sequence":
            log_weight_N = batch.per_token(batch.sum_per_response(log_weight_N))
        weight_N = exponential(log_weight_N).detach()
        above_N = weight_N > self.correction_high
        if self.correction == "truncate":
            return weight_N.clamp(max=self.correction_high), above_N
        outside_N = above_N | (weight_N < self.correction_low)
        return torch.where(outside_N, 0, weight_N), outside_N


def exponential(log_ratio: Tensor) -> Tensor:
    """The ratio, finite whatever its logarithm."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
