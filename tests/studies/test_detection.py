from driftproof.lab.experiment import SIGNALS, Result
from driftproof.lab.grid import Cell
from driftproof.lab.settings import LabObjective
from driftproof.metrics.collapse import SIGNS_OF_COLLAPSE, Limit
from studies.detection import CANDIDATES, detect, first_alarm

LIMIT = Limit(metric="grad_norm", side="above", value=1.0, window=2)
COLLAPSED = [0.3, 0.6, 0.1, 0.1]
LEARNED = [0.3, 0.4, 0.5, 0.6]
LOST = [0.3, 0.4, 0.3, 0.25]


def make_result(accuracies: list[float], grad_norm: list[float | None]) -> Result:
    cell = Cell(view="given", objective=LabObjective(name="naive"), staleness=0, lr=1e-4, seed=0)
    rows = tuple({"step": 20.0 * place, "accuracy": accuracy} for place, accuracy in enumerate(accuracies))
    return Result(cell=cell, rows=rows, signals={"grad_norm": grad_norm, "reward": [1.0] * 60}, seconds=1.0)


def rising(step: int) -> list[float | None]:
    """Two large values in a row, the second at `step`; no value at the step before."""
    return [2.0 if here in (step - 2, step) else None if here == step - 1 else 0.0 for here in range(1, 61)]


def test_leads_and_false_alarms_by_hand():
    # The collapse is at step 40, the third evaluation.
    warned = make_result(COLLAPSED, rising(15))
    at_once, late = make_result(COLLAPSED, rising(40)), make_result(COLLAPSED, rising(55))
    silent = make_result(COLLAPSED, [0.0] * 60)
    nothing, fine = make_result(LEARNED, rising(15)), make_result(LEARNED, [0.0] * 60)
    lost = make_result(LOST, rising(30))
    runs = [warned, at_once, late, silent, nothing, fine, lost]
    assert [first_alarm(result, (LIMIT,)) for result in runs] == [15, 40, 55, None, 15, None, 30]
    found = detect(runs, (LIMIT,))
    assert (found.collapsed, found.leads, found.late) == (4, (25,), 2)
    assert (found.lost, found.lost_alarms, found.learned, found.false_alarms) == (1, 1, 2, 1)
    assert found.median_lead == 25
    assert found.warned_interval[0] < 1 / 4 < found.warned_interval[1]
    assert found.false_alarm_interval[0] < 1 / 2 < found.false_alarm_interval[1]


def test_any_of_several_limits_alarms():
    never = Limit(metric="grad_norm", side="above", value=9.0)
    result = make_result(COLLAPSED, rising(15))
    assert first_alarm(result, (never,)) is None
    assert first_alarm(result, (never, LIMIT)) == first_alarm(result, (LIMIT, never)) == 15


def test_without_runs_nothing_is_known():
    found = detect([], CANDIDATES[0])
    assert (found.warned, found.median_lead, found.warned_interval) == (0, None, (0.0, 1.0))


def test_what_train_warns_of_is_evaluated_first_and_every_metric_is_recorded():
    assert CANDIDATES[0] == SIGNS_OF_COLLAPSE
    assert {limit.metric for limits in CANDIDATES for limit in limits} <= set(SIGNALS)
