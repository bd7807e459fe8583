"""Signs of a collapse, and the definition of one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.metrics.collapse import WINDOW, CollapseDetector, Limit, collapse_step, recent_means

ACCURACY = st.floats(0, 1) | st.just(math.nan)
RUN = st.lists(ACCURACY, min_size=1, max_size=12)


def alarms(series: list[float | None], **limit: object) -> list[int]:
    """The steps, 1-based, at which a limit on `m` alarms."""
    detector = CollapseDetector([Limit(**{"metric": "m", "side": "above", "value": 1.0, "window": 3} | limit)])
    observed = [detector.observe({} if value is None else {"m": value}) for value in series]
    return [step for step, found in enumerate(observed, start=1) if found]


@pytest.mark.parametrize(
    ("series", "limit", "expected"),
    [
        ([0.0, 0.0, 0.0, 2.0, 2.0, 2.0], {}, [5]),
        # One large value among small ones is not alarming.
        ([0.0, 0.0, 2.9, 0.0, 0.0], {}, []),
        # Not before a whole window is there, and once only.
        ([9.0, 9.0], {}, []),
        ([9.0, 9.0, 9.0, 9.0, 0.0, 0.0, 0.0, 9.0, 9.0, 9.0], {}, [3]),
        ([5.0, 5.0, 5.0, 0.5, 0.5, 0.5], {"side": "below"}, [6]),
        # A missing value is passed over.
        ([9.0, None, 9.0, None, 9.0], {}, [5]),
        # Half of what it was in the first window.
        ([4.0, 4.0, 4.0, 3.0, 2.0, 1.0, 1.0], {"side": "below", "value": 0.5, "relative": True}, [7]),
        ([1.0, 1.0, 1.0, 3.0, 3.0], {"value": 2.0, "relative": True}, [5]),
        # A multiple of nothing, or of less, is no limit.
        ([-1.0, -1.0, -1.0, -9.0, -9.0, -9.0], {"side": "below", "value": 0.5, "relative": True}, []),
        ([0.0, 0.0, 0.0, 9.0, 9.0, 9.0], {"value": 2.0, "relative": True}, []),
    ],
)
def test_a_limit_alarms_when_the_mean_of_its_window_crosses_it(
    series: list[float | None], limit: dict[str, object], expected: list[int]
):
    assert alarms(series, **limit) == expected


@given(st.lists(st.floats(0, 0.999), max_size=30))
def test_what_stays_within_its_limit_never_alarms(series: list[float]):
    assert alarms(list(series)) == []


def test_an_alarm_says_what_happened():
    detector = CollapseDetector([Limit(metric="grad_norm", side="above", value=2.0, relative=True, window=2)])
    observed = [detector.observe({"grad_norm": value}) for value in (1.0, 2.0, 4.0, 4.0)]
    ((alarm,),) = [found for found in observed if found]
    assert str(alarm) == "grad_norm was 4 on average over the last 2 steps, above 3"


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
def test_collapses_by_hand(accuracies: list[float], step: int | None) -> None:
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
