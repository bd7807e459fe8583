"""The figures of a benchmark: mean@k and unbiased pass@k, with bootstrap intervals over its problems."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Self

from driftproof.errors import ConfigError
from driftproof.evaluation.intervals import bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One answered problem of a benchmark."""

    index: int
    """Position in the benchmark."""
    rewards: tuple[float, ...]
    """[k], 0 for a response whose verification failed."""
    unverified: int
    """Responses whose verification failed."""
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and its 95% bootstrap interval over the problems."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        low, high = bootstrap(values)
        return cls(value=fmean(values), low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A policy on a benchmark."""

    name: str
    problems: int
    failed: int
    """Problems without an answer from the engine; they are in no figure."""
    failure: str
    """Why the last of these has none."""
    samples: int
    unverified: int
    """Responses that counted as wrong because their verification failed."""
    mean: Estimate
    """mean@k: mean reward over all responses."""
    passed: Mapping[int, Estimate]
    """Per k the probability that at least one of k responses is right."""


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate from `samples` responses of which `right` are right: 1 - C(n - c, k) / C(n, k).

    Source: arXiv 2107.03374, Eq. 1.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} responses with {right} right; 1 <= k <= responses, and no more right")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def score(name: str, problems: Sequence[Problem], failed: int = 0, failure: str = "") -> Score:
    """The figures of a benchmark; a response is right where its reward is at least 1. pass@k for powers of 2.

    Raises:
        ConfigError: no problems.
    """
    if not problems:
        raise ConfigError(f"benchmark {name!r}: no problem was answered")
    samples = len(problems[0].rewards)
    right = [sum(reward >= 1 for reward in problem.rewards) for problem in problems]
    ks = [2**power for power in range(samples.bit_length())]
    return Score(
        name=name,
        problems=len(problems),
        failed=failed,
        failure=failure,
        samples=samples,
        unverified=sum(problem.unverified for problem in problems),
        mean=Estimate.of([fmean(problem.rewards) for problem in problems]),
        passed={k: Estimate.of([pass_at_k(samples, count, k) for count in right]) for k in ks},
    )
