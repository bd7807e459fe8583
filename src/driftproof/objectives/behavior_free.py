"""Objectives that need the current policy alone: naive, SPO, ASymPO.

Notation: A the advantage of a response, m its tokens, S = -(1/m) sum log pi its mean token NLL under the current
policy, sg stop-gradient, R the responses of the optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from driftproof.objectives.objective import ObjectiveError, ObjectiveOutput, TokenLossObjective, check_range
from driftproof.objectives.responses import Responses


@dataclass(frozen=True, kw_only=True)
class Naive(TokenLossObjective):
    """REINFORCE under the current policy: L = (1/R) sum_r A_r S_r.

    Source: arXiv 2606.03070, Eq. 9. Collapses on stale data; here to compare with.
    """

    name: ClassVar[str] = "naive"

    def __call__(self, batch: Responses) -> ObjectiveOutput:
        losses_N = -batch.per_token(batch.advantages_R) * batch.logprobs_N
        return ObjectiveOutput(self.aggregate(batch, losses_N), {})


@dataclass(frozen=True, kw_only=True)
class SPO(TokenLossObjective):
    """Scaled policy optimisation: L = (1/R) sum_r A_r C_r S_r with C = 1 where A >= 0 and alpha where A < 0.

    Source: arXiv 2606.03070, Eq. 16-17, alpha 0.2. alpha=1 is `naive`, alpha=0 trains on positives alone.
    Not Simple Policy Optimization (arXiv 2401.16025), which shares the abbreviation.
    """

    name: ClassVar[str] = "spo"
    alpha: float = 0.2
    """Weight of negative responses, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "alpha", 0.0, 1.0)

    def __call__(self, batch: Responses) -> ObjectiveOutput:
        scaled_R = torch.where(batch.advantages_R < 0, self.alpha * batch.advantages_R, batch.advantages_R)
        losses_N = -batch.per_token(scaled_R) * batch.logprobs_N
        return ObjectiveOutput(self.aggregate(batch, losses_N), {})


@dataclass(frozen=True, kw_only=True)
class ASymPO(TokenLossObjective):
    """Each response's token loss divided by its own current mean NLL: L = (1/R) sum_r A_r S_r / sg(max(S_r, floor)).

    Source: arXiv 2606.03070, Eq. 18-19 and 43; `stable=True` is Eq. 44-46: log p is replaced by min(log p, log p_high)
    where A >= 0 and by max(log p, log p_low) where A < 0, before the mean; clipped tokens stay in the mean and have no
    gradient. While no S is under the floor the loss is exactly sum A / R, which is 0 for group-mean advantages: plot
    the health metrics, not the loss.

    The paper names a floor without its value. We take 1e-2: log-probs from bfloat16 hidden states are off by up to
    1e-2 nat, so below it the ratio is noise. Under the floor the weight tends to A S / floor, which is `naive`'s
    shape. The formula fixes the aggregation, so the only valid value is `seq-mean-token-mean`.
    """

    name: ClassVar[str] = "asympo"
    floor: float = 1e-2
    """Nats; 0 is off, and then a response of NLL exactly 0 gets weight 0."""
    stable: bool = False
    """Clip log-probs by the sign of the advantage first."""
    p_low: float = 0.02
    """Probability under which negative tokens get no gradient (stable form)."""
    p_high: float = 0.97
    """Probability above which positive tokens get no gradient (stable form)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregation != "seq-mean-token-mean":
            raise ObjectiveError(
                f"asympo: aggregation is {self.aggregation!r}; dividing by a response's own mean NLL fixes it to "
                "'seq-mean-token-mean' (under token-mean the gradient is a different one)"
            )
        if not isinstance(self.stable, bool):
            raise ObjectiveError(f"asympo: stable is {self.stable!r}; it must be true or false")
        check_range(self, "floor", 0.0, 10.0)
        check_range(self, "p_low", 0.0, 1.0)
        check_range(self, "p_high", self.p_low, 1.0)

    def __call__(self, batch: Responses) -> ObjectiveOutput:
        logprobs_N, metrics = self._clipped(batch) if self.stable else (batch.logprobs_N, {})
        nll_R = -batch.mean_per_response(logprobs_N)
        scale_R = nll_R.detach().clamp(min=self.floor)
        weight_R = torch.where(scale_R > 0, batch.advantages_R / scale_R, 0)
        loss = (weight_R * nll_R).sum() / batch.total_responses
        floored_R = (nll_R.detach() < self.floor) & (batch.lengths_R > 0)
        return ObjectiveOutput(loss, metrics | {"floored_share": floored_R.sum() / batch.total_responses})

    def _clipped(self, batch: Responses) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        negative_N = batch.per_token(batch.advantages_R < 0)
        low, high = torch.tensor([self.p_low, self.p_high], dtype=torch.float64).log().tolist()
        clipped_N = torch.where(negative_N, batch.logprobs_N.clamp(min=low), batch.logprobs_N.clamp(max=high))
        tokens = max(batch.total_tokens, 1)
        return clipped_N, {
            "clipped_high_share": (~negative_N & (batch.logprobs_N.detach() > high)).sum() / tokens,
            "clipped_low_share": (negative_N & (batch.logprobs_N.detach() < low)).sum() / tokens,
        }
