"""Objectives that need the log-probs of the policy that sampled.

Notation: mu the behavior policy, rho = pi / mu per token, A the advantage. Log-ratios are clamped to +-20 before the
exponential, so that a ratio is finite; at such a ratio every method here has long clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from driftproof.objectives.objective import ObjectiveError, ObjectiveOutput, TokenLossObjective, check_range
from driftproof.objectives.responses import Responses
from driftproof.types import Channel

MAX_LOG_RATIO = 20.0


def behavior_ratio(batch: Responses) -> Tensor:
    """rho = pi / mu per token, [N], with the gradient of pi.

    Raises:
        ObjectiveError: the batch carries no behavior log-probs.
    """
    if batch.behavior_logprobs_N is None:
        raise ObjectiveError("this objective needs behavior_logprobs, and the batch carries none")
    return (batch.logprobs_N - batch.behavior_logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@dataclass(frozen=True, kw_only=True)
class GRPO(TokenLossObjective):
    """Clipped ratio: token loss -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), ratio to the behavior policy.

    Source: arXiv 2402.03300, Eq. 3, without its KL term. For A < 0 the loss is capped at -dual_clip A
    (arXiv 1912.09729, Eq. 5). The paper's aggregation is the default here; verl's is `token-mean`, with the same clips
    and dual clip 3.
    Division of the advantage by the group's standard deviation is a choice of `driftproof.advantages`.
    """

    name: ClassVar[str] = "grpo"
    needs: ClassVar[frozenset[Channel]] = frozenset({Channel.BEHAVIOR_LOGPROBS})
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    """Largest ratio that a negative response is charged for; at least 1, infinity is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "clip_low", 0.0, 1.0)
        check_range(self, "clip_high", 0.0, math.inf)
        check_range(self, "dual_clip", 1.0, math.inf)

    def __call__(self, batch: Responses) -> ObjectiveOutput:
        ratio_N = behavior_ratio(batch)
        advantage_N = batch.per_token(batch.advantages_R)
        clipped_N = ratio_N.clamp(1 - self.clip_low, 1 + self.clip_high)
        losses_N = torch.maximum(-ratio_N * advantage_N, -clipped_N * advantage_N)
        capped_N = torch.where(advantage_N < 0, losses_N.minimum(-self.dual_clip * advantage_N), losses_N)
        tokens = max(batch.total_tokens, 1)
        ratio_N, rises = ratio_N.detach(), advantage_N > 0
        metrics = {
            "ratio_mean": ratio_N.sum() / tokens,
            "clipped_high_share": (rises & (ratio_N > 1 + self.clip_high)).sum() / tokens,
            "clipped_low_share": ((advantage_N < 0) & (ratio_N < 1 - self.clip_low)).sum() / tokens,
        }
        return ObjectiveOutput(self.aggregate(batch, capped_N), metrics)
