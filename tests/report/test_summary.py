"""The summary of a run, from real ledgers."""

import json
import math
from pathlib import Path

import pytest

from driftproof.ledger.ledger import Ledger
from driftproof.report.summary import summarize, write_summary

from .conftest import MakeLedger
from .ledgers import GROUP_SIZE, GROUPS_PER_STEP

PROMISED = {
    "accuracy_before",
    "accuracy_after",
    "greedy_before",
    "greedy_after",
    "steps",
    "wall_seconds",
    "steps_per_second",
    "overlap_efficiency",
    "groups_committed",
    "groups_trained",
    "age_mean",
    "age_max",
    "model",
}


def test_figures_of_a_run(make_ledger: MakeLedger, tmp_path: Path) -> None:
    ledger = make_ledger(40)
    ledger.record_event("verification failed", "prompt 3: time limit")
    ledger.record_event("verification failed", "prompt 4: time limit")
    summary = summarize(ledger, tmp_path / "snapshots" / "step-40")
    assert (summary.accuracy_before, summary.accuracy_after) == (0.34, 0.62)
    assert (summary.greedy_before, summary.greedy_after) == (0.4, 0.75)
    assert (summary.evaluation_prompts, summary.evaluation_samples) == (512, 4)
    assert (summary.steps, summary.groups_trained) == (40, 40 * GROUPS_PER_STEP)
    assert summary.groups_committed == sum(1 for _ in ledger.records())
    assert summary.wall_seconds == pytest.approx(4.0)
    assert summary.steps_per_second == pytest.approx(10.0)
    assert summary.overlap_efficiency == pytest.approx(1.0)
    assert summary.age_mean == pytest.approx(sum(step["age_mean"] for step in ledger.steps()) / 40)
    assert summary.age_max == 4
    assert summary.tokens_trained == 40 * GROUPS_PER_STEP * GROUP_SIZE * 3
    assert summary.events == {"verification failed": 2}
    assert (summary.objective, summary.model) == ("asympo", str(tmp_path / "snapshots" / "step-40"))


def test_the_file_holds_what_is_promised(make_ledger: MakeLedger, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    summary = summarize(make_ledger(3), Path("model"))
    write_summary(path, summary)
    values = json.loads(path.read_text())
    assert values == summary.to_json()
    assert values.keys() >= PROMISED
    assert not any("nll" in name for name in values)
    assert [file.name for file in tmp_path.glob("summary*")] == ["summary.json"]


def test_the_mean_age_weighs_groups(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(0, planned=2)
    ledger.finish_step(1, {"age_mean": 1.0, "age_max": 1, "groups": 3})
    ledger.finish_step(2, {"age_mean": 5.0, "age_max": 6, "groups": 1})
    summary = summarize(ledger, Path("model"))
    assert (summary.age_mean, summary.age_max) == (2.0, 6)


def test_a_run_without_steps_has_no_after(make_ledger: MakeLedger, tmp_path: Path) -> None:
    summary = summarize(make_ledger(0), Path("model"))
    assert (summary.accuracy_before, summary.accuracy_after) == (0.34, None)
    assert (summary.steps, summary.steps_per_second, summary.overlap_efficiency, summary.age_mean) == (
        0,
        None,
        None,
        None,
    )
    write_summary(tmp_path / "summary.json", summary)


def test_a_stopped_run_has_no_after(make_ledger: MakeLedger) -> None:
    summary = summarize(make_ledger(5, planned=10), Path("model"))
    assert (summary.accuracy_before, summary.accuracy_after) == (0.34, None)
    assert (summary.evaluation_prompts, summary.steps) == (512, 5)


def test_without_evaluation_and_recipe(make_ledger: MakeLedger) -> None:
    summary = summarize(make_ledger(2, evaluated=False, recipe=False), Path("model"))
    assert (summary.accuracy_before, summary.accuracy_after, summary.evaluation_prompts) == (None, None, None)
    assert summary.objective is None


def test_recorded_traces_have_likelihoods(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(3, evaluated=False)
    _record_nll(ledger, 0, 1.0, 1.1)
    _record_nll(ledger, 3, 0.8, 1.3)
    values = summarize(ledger, Path("model")).to_json()
    assert values["nll_heldout_before"] == {"positive_nll": 1.0, "negative_nll": 1.1}
    assert values["nll_heldout_after"] == {"positive_nll": 0.8, "negative_nll": 1.3}
    assert values["accuracy_before"] is None


def test_nan_never_enters_the_file(make_ledger: MakeLedger, tmp_path: Path) -> None:
    ledger = make_ledger(1, planned=2, evaluated=False)
    broken = dict.fromkeys(("time/step_seconds", "time/train_seconds", "reward", "grad_norm"), math.nan)
    ledger.finish_step(2, broken)
    ledger.record_evaluation("heldout", 0, {"sampled": math.nan, "greedy": 0.5, "prompts": 1, "samples": 1})
    _record_nll(ledger, 2, math.nan, math.inf)
    write_summary(tmp_path / "summary.json", summarize(ledger, Path("model")))
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["accuracy_before"] is None


def _record_nll(ledger: Ledger, step: int, positive: float, negative: float) -> None:
    nll = {"health/positive_nll": positive, "health/negative_nll": negative, "health/nll": 1.0}
    ledger.record_evaluation("heldout_nll", step, nll)
