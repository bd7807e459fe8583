"""The definition of a collapse."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.lab.collapse import collapse_step

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
    assert collapse_step([10 * place for place in range(len(accuracies))], accuracies) == step


@given(RUN)
def test_the_definition_word_by_word(accuracies: list[float]) -> None:
    found = [0.0 if math.isnan(accuracy) else accuracy for accuracy in accuracies]

    def collapsed(place: int) -> bool:
        before = max(found[:place], default=math.inf)
        return place > 0 and found[place] < before / 2 and found[place] < found[0]

    starts = [s for s in range(len(found)) if all(collapsed(place) for place in range(s, len(found)))]
    assert collapse_step(range(len(found)), accuracies) == min(starts, default=None)


@given(RUN, st.floats(0, 1))
def test_what_comes_back_has_not_collapsed(accuracies: list[float], more: float) -> None:
    base = 0.0 if math.isnan(accuracies[0]) else accuracies[0]
    recovered = [*accuracies, min(base + more, 1.0)]
    assert collapse_step(range(len(recovered)), recovered) is None


@given(RUN, st.integers(1, 5))
def test_it_stays_where_it_is_while_nothing_changes(accuracies: list[float], longer: int) -> None:
    step = collapse_step(range(len(accuracies)), accuracies)
    longer_run = accuracies + [accuracies[-1]] * longer
    assert collapse_step(range(len(longer_run)), longer_run) == step


def test_the_order_of_the_evaluations_matters() -> None:
    assert collapse_step([0, 1, 2], [0.3, 0.6, 0.1]) == 2
    assert collapse_step([0, 1, 2], [0.3, 0.1, 0.6]) is None


def test_a_step_for_every_evaluation() -> None:
    with pytest.raises(ValueError, match="longer"):
        collapse_step([0, 10], [0.3, 0.2, 0.1])
