"""Objectives that need the current policy alone: naive, GPG, SPO, ASymPO, scaled ASymPO, AsymRE, RFT.

Notation: A the advantage of a response, m its tokens, S = -(1/m) sum log pi its mean token NLL under the current
policy, sg stop-gradient, R the responses and N the tokens of the optimizer step. Each `token_losses` is written before
the aggregation, whose default gives the formula of the docstring.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from driftproof.errors import ObjectiveError
from driftproof.objectives.objective import (
    Aggregation,
    Bounds,
    Objective,
    Share,
    TokenLosses,
    check_range,
    only_per_response_means,
)
from driftproof.objectives.responses import Responses


@dataclass(frozen=True, kw_only=True)
class Naive(Objective):
    """REINFORCE under the current policy: L = (1/R) sum_r A_r S_r.

    Source: arXiv 2606.03070, Eq. 9. Collapses on stale data; here to compare with.
    """

    name: ClassVar[str] = "naive"

    def token_losses(self, batch: Responses) -> TokenLosses:
        return TokenLosses(-batch.per_token(batch.advantages_R) * batch.logprobs_N, {})


@dataclass(frozen=True, kw_only=True)
class GPG(Objective):
    """Group policy gradient: L = -(alpha/N) sum_r A_r sum_t log pi_t, the mean over all tokens.

    Source: arXiv 2504.02546, Eq. 3 and 7, and its code. `alpha` makes up for groups that teach nothing:
    `valid-groups` is the paper's B / (B - M), B the responses of the step and M those in groups of equal reward;
    `nonzero-rewards` is verl's B / #(responses with a reward that is not 0); a number is taken as it is. Where no
    response counts, alpha is 1. The paper's division of A by the group's standard deviation is a choice of
    `driftproof.objectives.advantages`; its resampling until enough groups are valid belongs to the rollout side.
    """

    name: ClassVar[str] = "gpg"
    aggregation: Aggregation = "token-mean"
    alpha: float | str = "valid-groups"
    """`valid-groups`, `nonzero-rewards` or a number of at least 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.alpha, str):
            check_range(self, "alpha", 0.0, math.inf)
        elif self.alpha not in ("valid-groups", "nonzero-rewards"):
            raise ObjectiveError(
                f"gpg: unknown alpha {self.alpha!r}; valid: valid-groups, nonzero-rewards, or a number"
            )

    def token_losses(self, batch: Responses) -> TokenLosses:
        alpha = self._alpha(batch)
        losses_N = -alpha * batch.per_token(batch.advantages_R) * batch.logprobs_N
        share = len(batch.logprobs_N) / max(batch.total_tokens, 1)
        return TokenLosses(losses_N, {"alpha": batch.advantages_R.new_tensor(alpha * share)})

    def _alpha(self, batch: Responses) -> float:
        if not isinstance(self.alpha, str):
            return self.alpha
        valid = self.alpha == "valid-groups"
        counted = batch.total_valid_responses if valid else batch.total_nonzero_rewards
        if counted is None:
            field = "total_valid_responses" if valid else "total_nonzero_rewards (or rewards_R of a whole step)"
            raise ObjectiveError(f"gpg: alpha {self.alpha!r} needs {field}, and the batch carries none")
        return batch.total_responses / counted if counted else 1.0


@dataclass(frozen=True, kw_only=True)
class SPO(Objective):
    """Scaled policy optimisation: L = (1/R) sum_r A_r C_r S_r with C = 1 where A >= 0 and alpha where A < 0.

    Source: arXiv 2606.03070, Eq. 16-17, alpha 0.2. alpha=1 is `naive`, alpha=0 is `rft`.
    Not Simple Policy Optimization (arXiv 2401.16025, here `simple-po`), which shares the abbreviation.
    """

    name: ClassVar[str] = "spo"
    alpha: Share = 0.2
    """Weight of negative responses."""

    def token_losses(self, batch: Responses) -> TokenLosses:
        scaled_R = torch.where(batch.advantages_R < 0, self.alpha * batch.advantages_R, batch.advantages_R)
        return TokenLosses(-batch.per_token(scaled_R) * batch.logprobs_N, {})


@dataclass(frozen=True, kw_only=True)
class ASymPO(Objective):
    """Each response's token loss divided by its own current mean NLL: L = (1/R) sum_r A_r S_r / sg(max(S_r, floor)).

    Source: arXiv 2606.03070, Eq. 18-19 and 43; `stable=True` is Eq. 44-46: log p is replaced by min(log p, log p_high)
    where A >= 0 and by max(log p, log p_low) where A < 0, before the mean; clipped tokens stay in the mean and have no
    gradient. While no S is under the floor the loss is exactly sum A / R, which is 0 for group-mean advantages: plot
    the health metrics, not the loss.

    The paper names a floor without its value. We take 1e-2: log-probs from bfloat16 logits are off by up to
    1e-2 nat, so below it the ratio is noise. Under the floor the weight tends to A S / floor, which is `naive`'s
    shape. The formula fixes the aggregation, so the only valid value is `seq-mean-token-mean`.
    """

    name: ClassVar[str] = "asympo"
    floor: Annotated[float, Bounds(0.0, 10.0)] = 1e-2
    """Nats; 0 is off, and then a response of NLL exactly 0 gets weight 0."""
    stable: bool = False
    """Clip log-probs by the sign of the advantage first."""
    p_low: Share = 0.02
    """Probability under which negative tokens get no gradient (stable form)."""
    p_high: Share = 0.97
    """Probability above which positive tokens get no gradient (stable form)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        only_per_response_means(self, "it divides by a response's own mean NLL")
        check_range(self, "p_high", self.p_low, 1.0)

    def token_losses(self, batch: Responses) -> TokenLosses:
        logprobs_N, metrics = self._clipped(batch) if self.stable else (batch.logprobs_N, {})
        nll_R = -batch.mean_per_response(logprobs_N)
        scale_R = nll_R.clamp(min=self.floor)
        weight_R = torch.where(scale_R > 0, batch.advantages_R / scale_R, 0)
        floored = batch.share_of_tokens(batch.per_token(nll_R < self.floor))
        return TokenLosses(-batch.per_token(weight_R) * logprobs_N, metrics | {"floored_share": floored})

    def _clipped(self, batch: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        negative_N = batch.per_token(batch.advantages_R < 0)
        low, high = torch.tensor([self.p_low, self.p_high], dtype=torch.float64).log().tolist()
        clipped_N = torch.where(negative_N, batch.logprobs_N.clamp(min=low), batch.logprobs_N.clamp(max=high))
        logprobs_N = batch.logprobs_N.detach()
        return clipped_N, {
            "clipped_high_share": batch.share_of_tokens(~negative_N & (logprobs_N > high)),
            "clipped_low_share": batch.share_of_tokens(negative_N & (logprobs_N < low)),
        }


@dataclass(frozen=True, kw_only=True)
class ScaledASymPO(ASymPO):
    """ASymPO with SPO's weight on negatives: L = (1/R) sum_r A_r C_r S_r / sg(max(S_r, floor)), C as in `SPO`.

    Source: arXiv 2606.03070, Eq. 16 and 18 put together, which the paper does not do: in the staleness lab it was
    steadier on stale data than ASymPO (docs/results.md). alpha=1 is `asympo`, alpha=0 has no negatives. The loss is
    that of ASymPO plus (1 - alpha) times the sum of abs A over negatives, by R: constant, and not 0.
    """

    name: ClassVar[str] = "scaled-asympo"
    alpha: Share = 0.2
    """Weight of negative responses."""

    def token_losses(self, batch: Responses) -> TokenLosses:
        losses_N, metrics = super().token_losses(batch)
        scale_R = torch.ones_like(batch.advantages_R).masked_fill(batch.advantages_R < 0, self.alpha)
        return TokenLosses(batch.per_token(scale_R) * losses_N, metrics)


@dataclass(frozen=True, kw_only=True)
class AsymRE(Objective):
    """REINFORCE with a baseline moved off the group mean: L = (1/R) sum_r (A_r - shift) S_r.

    Source: arXiv 2506.20520: J = E[(r - V) log pi] with V = group mean + shift. A shift below 0 keeps the support broad
    on off-policy data; at or above 0 the paper finds that it collapses. The default of -0.1 is the paper's and
    Trinity-RFT's. Groups of equal reward do teach here (A = 0, weight -shift); responses without a reward do not.
    """

    name: ClassVar[str] = "asymre"
    baseline_shift: Annotated[float, Bounds()] = -0.1
    """Added to the baseline, in units of the reward."""

    def token_losses(self, batch: Responses) -> TokenLosses:
        shifted_R = batch.advantages_R - self.baseline_shift
        if batch.rewards_R is not None:
            shifted_R = torch.where(batch.rewards_R.isnan(), 0, shifted_R)
        return TokenLosses(-batch.per_token(shifted_R) * batch.logprobs_N, {})


@dataclass(frozen=True, kw_only=True)
class RFT(Objective):
    """Positives alone: L = (1/R) sum over A > 0 of A_r S_r; rejection-sampling fine-tuning weighed by the advantage.

    Source: arXiv 2606.03070, Eq. 16 with alpha = 0 (its "positive-only" limit); with 0/1 rewards and no baseline it
    would be RAFT (arXiv 2304.06767). Cannot collapse, and learns nothing from mistakes: the floor to compare with.
    """

    name: ClassVar[str] = "rft"

    def token_losses(self, batch: Responses) -> TokenLosses:
        return TokenLosses(-batch.per_token(batch.advantages_R.clamp(min=0)) * batch.logprobs_N, {})
