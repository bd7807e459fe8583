"""Claims against grids whose outcome is known."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from driftproof.lab.experiment import Result
from driftproof.lab.grid import Cell, planned_cells
from studies.claims import CLAIMS, Check, Finding, Study, difference, judge
from tests.lab.grids import make_config

SEVEN = ("naive", "gpg", "grpo", "dppo-tv", "drpo", "spo", "asympo")
BASE = 0.3


def make_study(name: str, *labels: str, final: Callable[[Cell], float], signal: float = 1.0, age: int = 16) -> Study:
    """Runs of 100 steps that learn up to step 40, and end at `final`; `signal` is how much the scales grow."""
    objectives = [{"name": label.split()[0], "label": label} for label in labels]
    config = make_config(staleness=[0, age], seeds=[0, 1, 2, 3, 4], objectives=objectives)
    config = config.model_copy(update={"run": replace(config.run, name=name)})
    results = []
    for cell in planned_cells(config):
        accuracies = [BASE, 0.4, 0.5, *[final(cell)] * 3]
        loss = -0.4 if cell.objective.name == "naive" else 1e-8
        rows = tuple(
            {"step": 20 * place, "accuracy": accuracy, "loss": loss, "grad_norm": 0.5}
            for place, accuracy in enumerate(accuracies)
        )
        series = [1.0 + (signal - 1.0) * (step > 40) for step in range(1, 101)]
        signals = {"health/negative_nll": series, "health/scale_imbalance": series}
        results.append(Result(cell=cell, rows=rows, signals=signals, seconds=1.0))
    return Study(config=config, results=results)


def as_claimed(cell: Cell) -> float:
    """What the papers say: the end of a run by its objective."""
    order = {"naive": 0.05, "gpg": 0.06, "grpo": 0.5, "dppo-tv": 0.6, "drpo": 0.7, "spo": 0.8, "asympo": 0.9}
    return order[cell.objective.name] - 0.001 * cell.seed


def finding(number: int, *studies: Study) -> Finding:
    return judge({study.name: study for study in studies})[number - 1]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_where_all_is_as_claimed_the_claim_is_reproduced(number: int) -> None:
    found = finding(number, make_study("collapse", *SEVEN, final=as_claimed, signal=3.0))
    assert found.verdict == "reproduced", [check.text for check in found.checks if not check.holds]


def test_without_its_grids_a_claim_is_not_run() -> None:
    assert [found.verdict for found in judge({})] == ["not run"] * len(CLAIMS) == ["not run"] * 6
    fresh = make_study("collapse", *SEVEN, final=as_claimed, age=0)
    assert {found.verdict for found in judge({"collapse": fresh})} == {"not run"}


def test_where_nothing_is_as_claimed_it_is_not_reproduced() -> None:
    def alike(cell: Cell) -> float:
        return 0.2 if cell.objective.name in ("spo", "asympo") else 0.6

    study = make_study("collapse", *SEVEN, final=alike)
    assert finding(1, study).verdict == "not reproduced"
    assert finding(2, study).verdict == "not reproduced"


def test_a_verdict_follows_from_the_checks() -> None:
    yes, no = Check(text="", holds=True), Check(text="", holds=False)
    verdicts = [
        Finding(claim=CLAIMS[0], checks=checks, evidence="").verdict for checks in ((), (yes,), (yes, no), (no,))
    ]
    assert verdicts == ["not run", "reproduced", "partly", "not reproduced"]


def test_checks_carry_their_figures() -> None:
    texts = [check.text for check in finding(1, make_study("collapse", *SEVEN, final=as_claimed)).checks]
    assert "collapse, given, age 16: naive collapses, 5/5 [0.57, 1.00]" in texts
    assert "collapse, given, age 16: gpg ends below its base of 0.30: 0.06 [0.06, 0.06]" in texts
    assert (
        "collapse, given, age 16: spo does not, 0/5 [0.00, 0.43], and ends above its base of 0.30: 0.80 [0.80, 0.80]"
        in texts
    )
    assert "collapse, given, age 16: asympo ends above gpg, by +0.84 [+0.84, +0.84]" in texts


def test_a_scale_that_does_not_grow_before_the_collapse_is_seen() -> None:
    checks = finding(3, make_study("collapse", *SEVEN, final=as_claimed, signal=0.5)).checks
    assert [check.holds for check in checks] == [False, False, True, True]
    assert "0/10 [0.00, 0.28] runs: median 1.00, then 0.50" in checks[0].text


def test_alphas_are_compared_with_the_papers() -> None:
    finals = {"spo 0.0": 0.5, "spo 0.2": 0.7, "spo 1.0": 0.1}
    study = make_study("alpha", *finals, final=lambda cell: finals[cell.label])
    checks = finding(4, study).checks
    assert [check.text.split(": ")[1].split(",")[0] for check in checks] == [
        "spo 0.2 ends above spo 0.0",
        "spo 0.2 ends above spo 1.0",
    ]
    assert finding(4, study).verdict == "reproduced"


def test_thresholds_and_parts_are_compared_one_by_one() -> None:
    finals = {"drpo 0.04": 0.2, "drpo 2.5": 0.8, "dppo-tv": 0.6, "grpo": 0.5}
    found = finding(5, make_study("threshold", *finals, final=lambda cell: finals[cell.label]))
    assert [check.holds for check in found.checks] == [True, False, True]
    assert found.verdict == "partly"
    parts = {"asympo": 0.6, "asympo stable": 0.61, "per batch": 0.7, "naive at lr / mean NLL": 0.1}
    study = make_study("ablation", *parts, final=lambda cell: parts[cell.label])
    assert [check.holds for check in finding(6, study).checks] == [True, False, True]


def test_differences_are_paired_by_seed() -> None:
    finals = {"grpo": 0.5, "spo": 0.6}
    study = make_study("collapse", *finals, final=lambda cell: finals[cell.label] + 0.05 * cell.seed)
    found = difference(study, "given", "spo", "grpo", 16)
    assert found is not None
    assert (found.seeds, str(found)) == (5, "+0.10 [+0.10, +0.10]")
    assert difference(study, "given", "spo", "naive", 16) is None


def test_evidence_is_in_figures() -> None:
    study = make_study("collapse", *SEVEN, final=as_claimed, signal=3.0)
    assert finding(1, study).evidence == (
        "naive: collapsed 5/5 [0.57, 1.00], below its base 5/5; gpg: collapsed 5/5 [0.57, 1.00], below its base 5/5; "
        "spo: collapsed 0/5 [0.00, 0.43], below its base 0/5; asympo: collapsed 0/5 [0.00, 0.43], below its base 0/5"
    )
    assert finding(2, study).evidence == ("spo minus grpo: +0.30; asympo minus grpo: +0.40")
    both = {name: make_study(name, *SEVEN, final=as_claimed) for name in ("collapse", "sums")}
    assert judge(both)[1].evidence.startswith("spo minus grpo: +0.30 to +0.30 in 2 settings; ")
    assert finding(3, study).evidence.startswith("the negatives' NLL grew 3.0 times before a collapse (median of 10)")
    assert finding(4, study).evidence == ""
    alphas = {"spo 0.0": 0.5, "spo 0.2": 0.7}
    ends = finding(4, make_study("alpha", *alphas, final=lambda cell: alphas[cell.label])).evidence
    assert ends == "spo 0.0: 0.50 [0.50, 0.50]; spo 0.2: 0.70 [0.70, 0.70]"
