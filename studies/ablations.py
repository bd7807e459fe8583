"""ASymPO and DRPO taken apart and put together otherwise: objectives of grids, `studies.ablations:Class`.

None of them is an objective of its own; docs/results.md says what each was tried for, and what came of it.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from driftproof.errors import ObjectiveError
from driftproof.objectives import Objective, Responses
from driftproof.objectives.behavior_corrected import exponential
from driftproof.objectives.objective import Bounds, NonNegative, Share, TokenLosses, check_range
from driftproof.objectives.penalized import DRPO
from driftproof.types import Channel

Scale = Literal["none", "nll", "confidence"]
Sides = Literal["both", "negatives"]
Level = Literal["token", "response"]


@dataclass(frozen=True, kw_only=True)
class Normalized(Objective):
    """L = (1/R) sum_r A_r C_r S_r / sg(clamp(scale_r, floor, ceiling)), C = 1 where A >= 0 and alpha where A < 0.

    `scale` "nll" is S_r (ASymPO), "confidence" is the mean of 1 - p over the response's tokens, which makes the mass of
    the gradient in logit space exactly |A_r|; "none" is 1. `sides` "negatives" leaves positives undivided. `clip`
    replaces log p as ASymPO's stable form does (arXiv 2606.03070, Eq. 44). `entropy_floor` raises a response's floor to
    the mean entropy at its tokens: what is more probable than the policy expects of itself is not divided by less.
    """

    name: ClassVar[str] = "normalized"
    scale: Scale = "nll"
    sides: Sides = "both"
    alpha: Share = 1.0
    floor: Annotated[float, Bounds(1e-6, 10.0)] = 1e-2
    ceiling: float = math.inf
    """Largest divisor; 1 divides only responses of a smaller scale."""
    entropy_floor: bool = False
    clip: bool = False
    p_low: Annotated[float, Bounds(1e-6, 1.0)] = 0.02
    p_high: float = 0.97

    @property
    def needs(self) -> frozenset[Channel]:
        return super().needs | ({Channel.ENTROPY} if self.entropy_floor else set())

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "ceiling", self.floor, math.inf)
        check_range(self, "p_high", self.p_low, 1.0)

    def token_losses(self, batch: Responses) -> TokenLosses:
        negative_R = batch.advantages_R < 0
        logprobs_N = self._clipped(batch, batch.per_token(negative_R)) if self.clip else batch.logprobs_N
        divisor_R = self._scale(batch, logprobs_N).clamp(self.floor, self.ceiling)
        if self.entropy_floor:
            assert batch.entropy_N is not None
            divisor_R = torch.maximum(divisor_R, batch.mean_per_response(batch.entropy_N))
        if self.sides == "negatives":
            divisor_R = torch.where(negative_R, divisor_R, 1)
        weight_R = torch.where(negative_R, self.alpha * batch.advantages_R, batch.advantages_R) / divisor_R
        return TokenLosses(-batch.per_token(weight_R) * logprobs_N, {})

    def _scale(self, batch: Responses, logprobs_N: Tensor) -> Tensor:
        if self.scale == "none":
            return torch.ones_like(batch.advantages_R)
        return batch.mean_per_response(-logprobs_N if self.scale == "nll" else 1 - logprobs_N.exp())

    def _clipped(self, batch: Responses, negative_N: Tensor) -> Tensor:
        low, high = math.log(self.p_low), math.log(self.p_high)
        return torch.where(negative_N, batch.logprobs_N.clamp(min=low), batch.logprobs_N.clamp(max=high))


@dataclass(frozen=True, kw_only=True)
class BatchNormalized(Objective):
    """L = (1/R) sum_r A_r S_r / sg(S of its sign): each sign divided by its own mean NLL over the step, weighed by |A|.

    ASymPO's balance of the two signs, without evening out the responses within a sign.
    """

    name: ClassVar[str] = "batch-normalized"
    separable: ClassVar[bool] = False
    floor: Annotated[float, Bounds(1e-6, 10.0)] = 1e-2

    def token_losses(self, batch: Responses) -> TokenLosses:
        if len(batch.lengths_R) != batch.total_responses:
            raise ObjectiveError("batch-normalized needs the whole step at once")
        nll_R, divisor_R = -batch.mean_per_response(batch.logprobs_N), torch.ones_like(batch.advantages_R)
        for sign in (1, -1):
            weight_R = (sign * batch.advantages_R).clamp(min=0)
            mean = ((weight_R * nll_R).sum() / weight_R.sum().clamp(min=1e-12)).clamp(min=self.floor)
            divisor_R = torch.where(weight_R > 0, mean, divisor_R)
        return TokenLosses(-batch.per_token(batch.advantages_R / divisor_R) * batch.logprobs_N, {})


@dataclass(frozen=True, kw_only=True)
class ProbableNegatives(Objective):
    """L = (1/R) sum_r A_r (1/m) sum_t W_t (-log p_t), W = 1 where A >= 0 and alpha sg(P_t) where A < 0.

    P is the token's own current probability, or at level "response" exp(-S_r), the geometric mean over the response.
    What has become improbable is not pushed further down: in logit space a negative token has the mass
    2 alpha |A| P (1 - p), in `naive` 2 |A| (1 - p).
    """

    name: ClassVar[str] = "probable-negatives"
    level: Level = "token"
    alpha: NonNegative = 1.0

    def token_losses(self, batch: Responses) -> TokenLosses:
        logprobs_N = batch.logprobs_N.detach()
        if self.level == "response":
            logprobs_N = batch.per_token(batch.mean_per_response(logprobs_N))
        advantages_N = batch.per_token(batch.advantages_R)
        weight_N = torch.where(advantages_N < 0, self.alpha * logprobs_N.exp(), 1)
        return TokenLosses(-advantages_N * weight_N * batch.logprobs_N, {})


@dataclass(frozen=True, kw_only=True)
class ClampedDRPO(DRPO):
    """The gradient of DRPO, -rho A W per token with W = 1 - sign(A (rho - 1)) |pi - mu| / delta, W clamped.

    DRPO has W from 1 - 1 / delta to 1 + 1 / delta. `low=0` turns nothing back towards the behavior policy, `high=1`
    pushes nothing harder that has moved the wrong way.
    """

    name: ClassVar[str] = "clamped-drpo"
    low: Annotated[float, Bounds(high=1.0)] = -math.inf
    high: Annotated[float, Bounds(low=1.0)] = math.inf

    def ratio_losses(self, batch: Responses, log_ratio_N: Tensor) -> TokenLosses:
        ratio_N = exponential(log_ratio_N)
        advantage_N = batch.per_token(batch.advantages_R)
        mu_N = (batch.logprobs_N - log_ratio_N).detach().exp()
        weight_N = 1 - advantage_N.sign() * mu_N * (ratio_N - 1) / self.delta
        return TokenLosses(-advantage_N * ratio_N * weight_N.clamp(self.low, self.high).detach(), {})
