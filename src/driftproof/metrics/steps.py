"""Steps in numbers: rewards, ages and lengths of a batch, and means over several steps or updates."""

from collections.abc import Mapping, Sequence
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
    ages = {names.AGE_MEAN: sum(batch.ages) / len(batch.ages), names.AGE_MAX: max(batch.ages)}
    if batch.weights_ages:
        ages[names.WEIGHTS_AGE_MEAN] = sum(batch.weights_ages) / len(batch.weights_ages)
        ages[names.WEIGHTS_AGE_MAX] = max(batch.weights_ages)
    return {
        names.REWARD: float(given.mean()) if len(given) else 0.0,
        **ages,
        names.GROUPS: len(batch.groups),
        names.GROUPS_OF_EQUAL_REWARD: equal,
        names.RESPONSES: batch.responses,
        names.RESPONSES_WITHOUT_REWARD: batch.responses - len(given),
        names.RESPONSE_TOKENS: batch.tokens,
        names.RESPONSE_LENGTH: batch.tokens / max(batch.responses, 1),
        names.TRUNCATED_SHARE: truncated / max(batch.responses, 1),
    }


def mean_metrics(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the steps, or updates of a step, that have it."""
    known = dict.fromkeys(name for step in steps for name in step)
    values = {name: [float(step[name]) for step in steps if name in step] for name in known}
    return {name: sum(found) / len(found) for name, found in values.items()}
