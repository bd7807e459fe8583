"""A step's batch in numbers: rewards, ages, lengths, and the groups that teach nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from driftproof.types import Batch, FinishReason


def reward_metrics(batch: Batch) -> dict[str, Any]:
    """What a batch says about the rollout side that wrote it; a response without a reward counts in no mean."""
    rewards = [group.rewards[np.isfinite(group.rewards)] for group in batch.groups]
    given = np.concatenate(rewards)
    equal = sum(1 for reward in rewards if len(reward) == 0 or reward.min() == reward.max())
    truncated = sum(reason == FinishReason.LENGTH for group in batch.groups for reason in group.finish_reasons)
    return {
        "reward": float(given.mean()) if len(given) else 0.0,
        "age_mean": sum(batch.ages) / len(batch.ages),
        "age_max": max(batch.ages),
        "groups": len(batch.groups),
        "groups_of_equal_reward": equal,
        "responses": batch.responses,
        "responses_without_reward": batch.responses - len(given),
        "response_tokens": batch.tokens,
        "response_length": batch.tokens / max(batch.responses, 1),
        "truncated_share": truncated / max(batch.responses, 1),
    }
