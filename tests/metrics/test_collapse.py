import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.metrics.collapse import CollapseDetector, Limit


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
