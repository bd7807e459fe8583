"""The figures of a benchmark, mean@k and unbiased pass@k, and intervals for few problems or few runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Self

import numpy as np

from driftproof.errors import ConfigError

RESAMPLES = 10_000


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
    """The figures of a benchmark; a response is right where its reward is at least 1. pass@k for powers of 2."""
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


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean over runs (Efron 1979); with one value, that value twice."""
    if not len(values):
        raise ValueError("a bootstrap needs at least one value")
    given = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(given), size=(RESAMPLES, len(given)))
    low, high = np.quantile(given[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
