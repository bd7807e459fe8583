"""The definition of a collapse."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.lab.collapse import WINDOW, collapse_step, recent_means

ACCURACY = st.floats(0, 1) | st.just(math.nan)
RUN = st.lists(ACCURACY, min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("accuracies", "step"),
    [
        ([0.3, 0.5, 0.6, 0.1, 0.1], 30),  # collapsed
        ([0.3, 0.5, 0.6, 0.1, 0.5], None),  # dipped and came back
        ([0.3, 0.1, 0.6, 0.1, 0.05], 30),  # dipped, came back, collapsed
        ([0.3, 0.5, 0.6, 0.5, 0.1], 40),  # at the last evaluation
        ([0.3, 0.5, 0.8, 0.35, 0.35], None),  # under half of its best, but above the base policy
        ([0.3, 0.5, 0.5, 0.28, 0.26], None),  # under the base policy, but above half of its best
        ([0.3, 0.3, 0.29, 0.31, 0.3], None),  # never learned
        ([0.3, 0.1, 0.1, 0.1, 0.1], 10),  # fell from the start
        ([0.4, 0.2, 0.2], None),  # exactly half
        ([0.0, 0.0, 0.0], None),  # nothing to lose
        ([0.3], None),
        ([0.3, 0.5, math.nan, math.nan], 20),
        ([math.nan, 0.5, 0.1], None),  # a base of NaN is 0, and nothing is under it
    ],
)
def test_by_hand(accuracies: list[float], step: int | None) -> None:
    """Evaluations so far apart that no two fall into one window."""
    found = collapse_step([WINDOW * place for place in range(len(accuracies))], accuracies)
    assert found == (step if step is None else WINDOW * step // 10)


def test_accuracy_is_averaged_over_the_last_twenty_steps() -> None:
    assert WINDOW == 20
    assert recent_means([0, 5, 15, 20, 25], [0.1, 0.2, 0.6, 0.7, math.nan]) == pytest.approx(
        [0.1, 0.15, 0.3, 0.5, 1.3 / 3]
    )


def test_one_low_evaluation_at_the_end_is_no_collapse() -> None:
    steps = [0, 10, 20, 30, 40, 50]
    assert collapse_step(steps, [0.3, 0.5, 0.6, 0.6, 0.6, 0.01]) is None
    assert collapse_step(steps, [0.3, 0.5, 0.6, 0.6, 0.1, 0.1]) == 50


@given(RUN)
def test_the_definition_word_by_word(accuracies: list[float]) -> None:
    found = [0.0 if math.isnan(accuracy) else accuracy for accuracy in accuracies]

    def collapsed(place: int) -> bool:
        before = max(found[:place], default=math.inf)
        return place > 0 and found[place] < before / 2 and found[place] < found[0]

    starts = [s for s in range(len(found)) if all(collapsed(place) for place in range(s, len(found)))]
    step = collapse_step(range(0, WINDOW * len(found), WINDOW), accuracies)
    assert step == (WINDOW * min(starts) if starts else None)


@given(RUN, st.floats(0, 1))
def test_what_comes_back_has_not_collapsed(accuracies: list[float], more: float) -> None:
    base = 0.0 if math.isnan(accuracies[0]) else accuracies[0]
    recovered = [*accuracies, min(base + more, 1.0)]
    assert collapse_step(range(0, WINDOW * len(recovered), WINDOW), recovered) is None


@given(RUN, st.integers(1, 5))
def test_it_stays_where_it_is_while_nothing_changes(accuracies: list[float], longer: int) -> None:
    longer_run = accuracies + [accuracies[-1]] * longer
    step, later = (collapse_step(range(0, WINDOW * len(run), WINDOW), run) for run in (accuracies, longer_run))
    assert later == step


def test_the_order_of_the_evaluations_matters() -> None:
    assert collapse_step([0, 20, 40], [0.3, 0.6, 0.1]) == 40
    assert collapse_step([0, 20, 40], [0.3, 0.1, 0.6]) is None


def test_a_step_for_every_evaluation() -> None:
    with pytest.raises(ValueError, match="longer"):
        collapse_step([0, 10], [0.3, 0.2, 0.1])
