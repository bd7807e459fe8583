"""Intervals for few runs, or few problems."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean over runs (Efron 1979); with one value, that value twice.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("a bootstrap needs at least one value")
    given = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(given), size=(RESAMPLES, len(given)))
    low, high = np.quantile(given[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
