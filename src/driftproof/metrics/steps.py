"""Steps in numbers: rewards, ages and lengths of a batch, and means over several steps or updates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from driftproof.metrics import names
from driftproof.types import Batch, FinishReason, Group


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
        names.RESPONSES_BREAKING_VERIFIER: sum(map(_breaking, batch.groups)),
        **_parts(batch),
        names.RESPONSE_TOKENS: batch.tokens,
        names.RESPONSE_LENGTH: batch.tokens / max(batch.responses, 1),
        names.TRUNCATED_SHARE: truncated / max(batch.responses, 1),
    }


def _breaking(group: Group) -> int:
    """Responses that have a reward, and a problem with their verification."""
    return sum(
        bool(problem) for problem, reward in zip(group.problems, group.rewards, strict=False) if reward == reward
    )


def _parts(batch: Batch) -> dict[str, float]:
    """The mean reward of each of several functions."""
    given: dict[str, list[float]] = {}
    for group in batch.groups:
        for label, rewards in group.reward_parts.items():
            given.setdefault(label, []).extend(reward for reward in rewards if reward is not None)
    return {
        names.REWARD_OF_FUNCTION.replace("NAME", label): sum(rewards) / len(rewards)
        for label, rewards in given.items()
        if rewards
    }


def mean_metrics(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the steps, or updates of a step, that have it."""
    known = dict.fromkeys(name for step in steps for name in step)
    values = {name: [float(step[name]) for step in steps if name in step] for name in known}
    return {name: sum(found) / len(found) for name, found in values.items()}
