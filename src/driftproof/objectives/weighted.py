"""Objectives that weigh the log-prob by a truncated or masked ratio without gradient: CISPO, DPPO, TOPR.

Notation: rho the ratio of a token (see `behavior_corrected`), mu and pi the two probabilities of it, A the advantage of
its response, sg stop-gradient. Each token loss is -sg(weight) A log pi.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from driftproof.objectives.behavior_corrected import BehaviorCorrected, exponential
from driftproof.objectives.objective import Aggregation, AtLeastOne, NonNegative, Share, TokenLosses, check_range
from driftproof.objectives.responses import Responses


@dataclass(frozen=True, kw_only=True)
class CISPO(BehaviorCorrected):
    """Truncated weight, no token dropped: -sg(clip(rho, ratio_low, ratio_high)) A log pi.

    Source: arXiv 2506.13585, Eq. 4-5. The paper tunes the upper bound and has no lower one; its value is not given. We
    take ratio_high 5 as ScaleRL and TRL do, and ratio_low 0, which is off.
    """

    name: ClassVar[str] = "cispo"
    aggregation: Aggregation = "token-mean"
    ratio_low: Share = 0.0
    ratio_high: AtLeastOne = 5.0

    def ratio_losses(self, batch: Responses, log_ratio_N: Tensor) -> TokenLosses:
        ratio_N = exponential(log_ratio_N).detach()
        advantage_N = batch.per_token(batch.advantages_R)
        losses_N = -ratio_N.clamp(self.ratio_low, self.ratio_high) * advantage_N * batch.logprobs_N
        shares = {
            "clipped_high_share": batch.share_of_tokens(ratio_N > self.ratio_high),
            "clipped_low_share": batch.share_of_tokens(ratio_N < self.ratio_low),
        }
        return TokenLosses(losses_N, shares)


@dataclass(frozen=True, kw_only=True)
class _DPPO(BehaviorCorrected):
    """Divergence PPO: -M sg(min(rho, ratio_high)) A log pi, M = 0 for tokens that have moved too far.

    A token that moves back towards the behavior policy is never masked. Source: arXiv 2602.04879, Eq. 11-12, and its
    code. The paper argues against truncating rho, and its runs truncate at 10,000: ratio_high is infinity here.
    """

    aggregation: Aggregation = "seq-mean-token-sum-norm"
    ratio_high: AtLeastOne = math.inf
    """Truncation of the ratio; infinity is off."""

    def ratio_losses(self, batch: Responses, log_ratio_N: Tensor) -> TokenLosses:
        logprobs_N, log_ratio_N = batch.logprobs_N.detach(), log_ratio_N.detach()
        pi_N, mu_N = logprobs_N.exp(), (logprobs_N - log_ratio_N).exp()
        positive_N = batch.per_token(batch.advantages_R > 0)
        far_N = self.too_far(pi_N, mu_N)
        high_N, low_N = positive_N & far_N & (pi_N > mu_N), ~positive_N & far_N & (pi_N < mu_N)
        weight_N = torch.where(high_N | low_N, 0, exponential(log_ratio_N).clamp(max=self.ratio_high))
        losses_N = -weight_N * batch.per_token(batch.advantages_R) * batch.logprobs_N
        shares = {
            "clipped_high_share": batch.share_of_tokens(high_N),
            "clipped_low_share": batch.share_of_tokens(low_N & batch.per_token(batch.advantages_R < 0)),
        }
        return TokenLosses(losses_N, shares)

    @abstractmethod
    def too_far(self, pi_N: Tensor, mu_N: Tensor) -> Tensor:
        """bool [N]: whether the divergence between the token's two Bernoulli distributions is above the threshold."""


@dataclass(frozen=True, kw_only=True)
class DPPOTV(_DPPO):
    """DPPO with total variation: -M sg(min(rho, ratio_high)) A log pi, M = 0 where sign(A) (pi - mu) > delta.

    Source: arXiv 2602.04879, Eq. 11-12 (Binary-TV); delta 0.15 as in its code, verl and TRL. A token that moves back
    towards the behavior policy is never masked. The paper argues against truncating rho: ratio_high is off here.
    Aggregation as in the paper, a sum over tokens divided by a constant: `horizon`.
    """

    name: ClassVar[str] = "dppo-tv"
    delta: Share = 0.15

    def too_far(self, pi_N: Tensor, mu_N: Tensor) -> Tensor:
        return (pi_N - mu_N).abs() > self.delta


@dataclass(frozen=True, kw_only=True)
class DPPOKL(_DPPO):
    """DPPO with KL: -M sg(min(rho, ratio_high)) A log pi, M = 0 where A (pi - mu) > 0 and KL(mu, pi) > delta.

    KL is that of the two Bernoulli distributions "this token or another". Source: arXiv 2602.04879, Eq. 11-12
    (Binary-KL); delta 0.05 as in its code, verl and TRL. Otherwise as `dppo-tv`.
    """

    name: ClassVar[str] = "dppo-kl"
    delta: NonNegative = 0.05
    """Nats."""

    def too_far(self, pi_N: Tensor, mu_N: Tensor) -> Tensor:
        rest_pi_N, rest_mu_N = (1 - pi_N).clamp(min=1e-8), (1 - mu_N).clamp(min=1e-8)
        tiny = torch.finfo(pi_N.dtype).tiny
        kl_N = mu_N * (mu_N.clamp(min=tiny) / pi_N.clamp(min=tiny)).log() + rest_mu_N * (rest_mu_N / rest_pi_N).log()
        return kl_N > self.delta


@dataclass(frozen=True, kw_only=True)
class TOPR(BehaviorCorrected):
    """Tapered off-policy REINFORCE: -A log pi where A >= 0, -sg(clip(W, ratio_low, ratio_high)) A log pi where A < 0.

    W is the product of rho over the response (`level` "sequence", the paper) or the token's rho ("token", as some
    implement it). Positives have no ratio: they are imitated whatever wrote them. Source: arXiv 2503.14286, Eq. 8, with
    negatives truncated to [0, 1] and a loss divided by length. The paper takes rewards of +-1 without a baseline; here
    whatever the advantages are, by default those of the group's mean.
    """

    name: ClassVar[str] = "topr"
    level: Literal["sequence", "token"] = "sequence"
    ratio_low: Share = 0.0
    ratio_high: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "ratio_high", self.ratio_low, math.inf)

    def ratio_losses(self, batch: Responses, log_ratio_N: Tensor) -> TokenLosses:
        if self.level == "sequence":
            log_ratio_N = batch.per_token(batch.sum_per_response(log_ratio_N))
        ratio_N = exponential(log_ratio_N).detach()
        advantage_N = batch.per_token(batch.advantages_R)
        weight_N = torch.where(advantage_N < 0, ratio_N.clamp(self.ratio_low, self.ratio_high), 1)
        shares = {
            "clipped_high_share": batch.share_of_tokens((advantage_N < 0) & (ratio_N > self.ratio_high)),
            "clipped_low_share": batch.share_of_tokens((advantage_N < 0) & (ratio_N < self.ratio_low)),
        }
        return TokenLosses(-weight_N * advantage_N * batch.logprobs_N, shares)
