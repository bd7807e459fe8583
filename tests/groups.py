"""Small groups, written by hand."""

from collections.abc import Sequence

import numpy as np

from driftproof.types import Batch, FinishReason, Group


def make_group(
    prompt: Sequence[int],
    responses: Sequence[Sequence[int]],
    rewards: Sequence[float] | None = None,
    *,
    prompt_index: int = 0,
    behavior_logprobs: Sequence[float] | None = None,
    problems: tuple[str, ...] = (),
) -> Group:
    """A group of the given tokens; without rewards all are 0."""
    return Group(
        prompt_index=prompt_index,
        prompt_tokens=np.array(prompt, np.int32),
        response_tokens=np.array([token for response in responses for token in response], np.int32),
        response_lengths=np.array([len(response) for response in responses], np.int32),
        rewards=np.array([0.0] * len(responses) if rewards is None else rewards, np.float64),
        finish_reasons=(FinishReason.STOP,) * len(responses),
        problems=problems,
        behavior_logprobs=None if behavior_logprobs is None else np.array(behavior_logprobs, np.float32),
    )


def make_batch(*groups: Group, step: int = 1) -> Batch:
    return Batch(step=step, groups=groups, ages=(0,) * len(groups))


def random_groups(
    seed: int, count: int = 3, size: int = 4, vocabulary: int = 50, behavior_logprobs: bool = False
) -> list[Group]:
    """Groups of random tokens, lengths (1 to 6) and rewards (0 or 1, not all equal)."""
    generator = np.random.default_rng(seed)
    groups = []
    for index in range(count):
        lengths = generator.integers(1, 7, size)
        rewards = generator.integers(0, 2, size).astype(float)
        rewards[:2] = [1, 0]
        groups.append(
            make_group(
                generator.integers(0, vocabulary, generator.integers(1, 6)).tolist(),
                [generator.integers(0, vocabulary, length).tolist() for length in lengths],
                rewards.tolist(),
                prompt_index=index,
                behavior_logprobs=(-generator.exponential(1, lengths.sum())).tolist() if behavior_logprobs else None,
            )
        )
    return groups
