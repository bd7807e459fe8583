"""Intervals against known values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.evaluation.score import bootstrap, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # 0 of n: from 0 to z² / (n + z²); n of n mirrors it.
        (0, 5, 0.0, 1.96**2 / (5 + 1.96**2)),
        (5, 5, 5 / (5 + 1.96**2), 1.0),
        # Newcombe 1998, table I: score intervals without continuity correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_without_trials() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 200).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


def test_bootstrap_of_two_values_is_their_range() -> None:
    # Both draws are the lower one with a chance of 1/4, which is more than 2.5%.
    assert bootstrap([0.2, 0.6]) == pytest.approx((0.2, 0.6))


def test_bootstrap_of_three_values() -> None:
    # All three draws are the lowest with a chance of 1/27, more than 2.5%.
    assert bootstrap([0.1, 0.2, 0.6]) == pytest.approx((0.1, 0.6))


def test_bootstrap_of_many_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(size=400)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert bootstrap(values.tolist()) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_bootstrap_is_repeatable_and_within_the_values(values: list[float]) -> None:
    low, high = bootstrap(values)
    assert bootstrap(values) == (low, high)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12


def test_bootstrap_of_one_value_and_of_none() -> None:
    assert bootstrap([0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap([])
