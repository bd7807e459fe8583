"""Objectives with a learned value baseline: PPO."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from driftproof.errors import ObjectiveError
from driftproof.objectives.advantages import token_advantages
from driftproof.objectives.behavior_corrected import BehaviorCorrected, exponential
from driftproof.objectives.clipped import cap_negatives, clipped_losses
from driftproof.objectives.objective import Aggregation, AtLeastOne, NonNegative, Share, TokenLosses
from driftproof.objectives.responses import Responses
from driftproof.types import Channel


@dataclass(frozen=True, kw_only=True)
class PPO(BehaviorCorrected):
    """Clipped ratio with a critic: -min(rho A_t, clip(rho, 1 - clip_low, 1 + clip_high) A_t) + value_coefficient V_t.

    A_t is the generalised advantage estimate of each token: the response's reward at its last token, the values V of
    the policy's value head before each token, `discount`, `gae_lambda`; one that was cut off ends like any other.
    V_t = max((v - g)^2, (clip(v, old - value_clip, old + value_clip) - g)^2) / 2 with the return g = A_t + old value.
    The group's advantages are not used, and a response without a reward trains nothing.

    Source: arXiv 1707.06347, Eq. 7 and 11; arXiv 1506.02438, Eq. 16; the value clip is the reference implementation's.
    The paper discounts by 0.99 over long control tasks; language models are trained undiscounted (TRL, verl: 1.0).
    gae_lambda 0.95 and clip 0.2 are the paper's; value_clip 0.2 and value_coefficient 0.1 are TRL's; dual clip as in
    `grpo`. Advantages are not whitened over the step, so that the objective stays separable.
    """

    name: ClassVar[str] = "ppo"
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.BEHAVIOR_LOGPROBS, Channel.VALUES})
    aggregation: Aggregation = "token-mean"
    clip_low: Share = 0.2
    clip_high: NonNegative = 0.2
    dual_clip: AtLeastOne = 3.0
    """Largest ratio that a negative token is charged for; infinity is off."""
    discount: Share = 1.0
    gae_lambda: Share = 0.95
    value_clip: NonNegative = 0.2
    """Furthest a value is moved from its old one, in units of the reward; infinity is off."""
    value_coefficient: NonNegative = 0.1

    def token_losses(self, batch: Responses) -> TokenLosses:
        actor_N, metrics = super().token_losses(batch)
        critic_N, critic_metrics = self._value_losses(batch)
        return TokenLosses(actor_N + self.value_coefficient * critic_N, metrics | critic_metrics)

    def ratio_losses(self, batch: Responses, log_ratio_N: Tensor) -> TokenLosses:
        advantage_N, _ = self._estimate(batch)
        ratio_N = exponential(log_ratio_N)
        losses_N, metrics = clipped_losses(batch, ratio_N, advantage_N, 1 - self.clip_low, 1 + self.clip_high)
        return TokenLosses(cap_negatives(losses_N, advantage_N, self.dual_clip), metrics)

    def _value_losses(self, batch: Responses) -> TokenLosses:
        assert batch.values_N is not None
        assert batch.rewards_R is not None
        _, return_N = self._estimate(batch)
        old_N = _old_values(batch)
        near_N = old_N + (batch.values_N - old_N).clamp(-self.value_clip, self.value_clip)
        losses_N = torch.maximum((batch.values_N - return_N).square(), (near_N - return_N).square()) / 2
        losses_N = torch.where(batch.per_token(batch.rewards_R.isnan()), 0, losses_N)
        tokens = max(batch.total_tokens, 1)
        means = {"value_loss": losses_N.detach().sum() / tokens, "value_mean": batch.values_N.detach().sum() / tokens}
        return TokenLosses(losses_N, means)

    def _estimate(self, batch: Responses) -> tuple[Tensor, Tensor]:
        """Advantage and return of each token, [N] each; 0 and the old value where there is no reward."""
        if batch.rewards_R is None:
            raise ObjectiveError("objective 'ppo' needs rewards_R, and the batch carries none")
        if batch.sum_over_ranks is not None:
            raise ObjectiveError("objective 'ppo' estimates advantages along a response; it cannot be split over ranks")
        old_N = _old_values(batch)
        advantage_N = token_advantages(
            batch.rewards_R.nan_to_num(), old_N, batch.lengths_R, discount=self.discount, gae_lambda=self.gae_lambda
        )
        advantage_N = torch.where(batch.per_token(batch.rewards_R.isnan()), 0, advantage_N)
        return advantage_N, advantage_N + old_N


def _old_values(batch: Responses) -> Tensor:
    values_N = batch.values_N if batch.old_values_N is None else batch.old_values_N
    assert values_N is not None
    return values_N.detach()
