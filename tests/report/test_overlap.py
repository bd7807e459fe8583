"""Who is busy and who waits."""

import math

import pytest

from driftproof.report.overlap import finite, overlap

from .ledgers import step_metrics


def _steps(*, train: float, rollouts: float, count: int = 4) -> list[dict[str, float]]:
    return [
        {
            "time/step_seconds": 1.0,
            "time/train_seconds": train - 0.1,
            "time/publish_seconds": 0.1,
            "rollout/busy_seconds": rollouts,
            "response_tokens": 30,
            "rollout/tokens": 20,
        }
    ] * count


def test_sums_and_shares() -> None:
    both = overlap(_steps(train=0.8, rollouts=1.2), workers=2)
    assert both.wall_seconds == 4
    assert both.learner_busy == pytest.approx(0.8)
    assert both.rollout_busy == pytest.approx(0.6)
    assert both.efficiency == pytest.approx(0.8)
    assert (both.learner_tokens, both.rollout_tokens) == (120, 80)


def test_the_busier_side_counts() -> None:
    assert overlap([step_metrics(1), step_metrics(2)], workers=2).efficiency == pytest.approx(1.0)


def test_nothing_yet() -> None:
    both = overlap([], workers=0)
    assert (both.efficiency, both.learner_busy, both.rollout_busy) == (None, None, None)
    assert both.waiting(max_staleness=4) == ""


@pytest.mark.parametrize(
    ("train", "rollouts", "max_staleness", "words"),
    [
        (0.6, 1.0, 4, "learner waits for rollouts"),
        (1.0, 0.6, 4, "rollouts wait for the learner (ahead as far as max_staleness allows)"),
        (0.95, 1.0, 4, "nobody waits: both sides are busy"),
        (0.6, 0.4, 0, "the two sides take turns (max_staleness is 0)"),
    ],
)
def test_who_waits_for_whom(train: float, rollouts: float, max_staleness: int, words: str) -> None:
    assert overlap(_steps(train=train, rollouts=rollouts), workers=1).waiting(max_staleness) == words


def test_figures_that_are_no_numbers_do_not_count() -> None:
    assert overlap([{"time/step_seconds": math.nan}, {"time/step_seconds": 2.0}], workers=1).wall_seconds == 2
    assert [finite(value) for value in (1, 0.5, math.nan, -math.inf, None, "1")] == [1.0, 0.5, None, None, None, None]
