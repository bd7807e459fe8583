"""A step's batch in numbers: rewards, ages, lengths, and the groups that teach nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from driftproof.metrics import names
from driftproof.types import Batch, FinishReason


def reward_metrics(batch: Batch) -> dict[str, Any]:
    """The figures of a batch about the rollout side that wrote it; a response without a reward counts in no mean."""
    rewards = [group.rewards[np.isfinite(group.rewards)] for group in batch.groups]
    given = np.concatenate(rewards)
    equal = sum(1 for reward in rewards if len(reward) == 0 or reward.min() == reward.max())
    truncated = sum(reason == FinishReason.LENGTH for group in batch.groups for reason in group.finish_reasons)
    return {
        names.REWARD: float(given.mean()) if len(given) else 0.0,
        names.AGE_MEAN: sum(batch.ages) / len(batch.ages),
        names.AGE_MAX: max(batch.ages),
        names.GROUPS: len(batch.groups),
        names.GROUPS_OF_EQUAL_REWARD: equal,
        names.RESPONSES: batch.responses,
        names.RESPONSES_WITHOUT_REWARD: batch.responses - len(given),
        names.RESPONSE_TOKENS: batch.tokens,
        names.RESPONSE_LENGTH: batch.tokens / max(batch.responses, 1),
        names.TRUNCATED_SHARE: truncated / max(batch.responses, 1),
    }
