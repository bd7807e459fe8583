from driftproof.collapse import Limit
from driftproof.config import LabObjective
from driftproof.lab.detection import detect, first_alarm
from driftproof.lab.grid import Cell
from driftproof.lab.runner import Result

LIMIT = Limit(metric="grad_norm", side="above", value=1.0, window=2)
COLLAPSED = [0.3, 0.6, 0.1, 0.1]
HEALTHY = [0.3, 0.4, 0.5, 0.6]


def make_result(accuracies: list[float], grad_norm: list[float]) -> Result:
    cell = Cell(view="given", objective=LabObjective(name="naive"), staleness=0, lr=1e-4, seed=0)
    rows = tuple({"step": 2.0 * place, "accuracy": accuracy} for place, accuracy in enumerate(accuracies))
    return Result(cell=cell, rows=rows, signals={"grad_norm": grad_norm}, seconds=1.0)


def test_leads_and_false_alarms_by_hand():
    # The collapse is at step 4, the third evaluation.
    warned = make_result(COLLAPSED, [0, 2, 2, 2, 2, 2])
    late = make_result(COLLAPSED, [0, 0, 0, 0, 2, 2])
    silent = make_result(COLLAPSED, [0] * 6)
    nothing = make_result(HEALTHY, [0, 2, 2, 0, 0, 0])
    fine = make_result(HEALTHY, [0] * 6)
    assert [first_alarm(result, LIMIT) for result in (warned, late, silent)] == [3, 6, None]
    found = detect([warned, late, silent, nothing, fine], LIMIT)
    assert (found.collapsed, found.leads, found.healthy, found.false_alarms) == (3, (1,), 2, 1)
    assert found.median_lead == 1
    assert found.warned_interval[0] < 1 / 3 < found.warned_interval[1]
    assert found.false_alarm_interval[0] < 1 / 2 < found.false_alarm_interval[1]


def test_without_runs_nothing_is_known():
    found = detect([], LIMIT)
    assert (found.warned, found.median_lead, found.warned_interval) == (0, None, (0.0, 1.0))
