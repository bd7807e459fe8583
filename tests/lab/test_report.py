"""The results as a table for other programs."""

import json
import math
from pathlib import Path

import pytest

pq = pytest.importorskip("pyarrow.parquet")

from driftproof.lab.grid import planned_cells  # noqa: E402
from driftproof.lab.report import write_results  # noqa: E402
from tests.lab.grids import make_config, make_result, make_results  # noqa: E402


def test_what_is_written_is_read(tmp_path: Path) -> None:
    objectives = [{"name": "grpo", "label": "GRPO high", "baseline": "mean-std", "lr": 3e-4, "clip_high": math.inf}]
    config = make_config(objectives=objectives, staleness=[16], seeds=[7], schedule="periodic")
    [cell] = planned_cells(config)
    metrics = {"health__scale_imbalance": [1.5, math.inf], "lr": [1e-4, 3e-4]}
    write_results(config, [make_result(cell, [0.3, 0.6, 0.1], **metrics)], tmp_path / "results.parquet")
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert json.loads(rows[0].pop("fields")) == {"clip_high": math.inf}
    assert rows[0] == {
        "view": "given",
        "label": "GRPO high",
        "objective": "grpo",
        "baseline": "mean-std",
        "staleness": 16,
        "schedule": "periodic",
        "lr": 3e-4,
        "seed": 7,
        "seconds": 1.5,
        "collapse_step": 40,
        "step": 0,
        "final": False,
        "accuracy": 0.3,
        "health/scale_imbalance": None,
        "lr_mean": None,
    }
    columns = ("step", "final", "accuracy", "health/scale_imbalance", "lr", "lr_mean")
    assert [rows[2][column] for column in columns] == [40, True, 0.1, math.inf, 3e-4, 3e-4]
    assert list(tmp_path.iterdir()) == [tmp_path / "results.parquet"]


def test_metrics_that_only_some_runs_have(tmp_path: Path) -> None:
    config = make_config("grpo", "asympo", staleness=[0], seeds=[0])
    grpo, asympo = planned_cells(config)
    results = [
        make_result(grpo, [0.3, math.nan], objective__clipped_high_share=[0.1]),
        make_result(asympo, [0.3, 0.4], grad_norm=[2]),
    ]
    write_results(config, results, tmp_path / "results.parquet")
    table = pq.read_table(tmp_path / "results.parquet")
    assert {str(table.schema.field(name).type) for name in ("grad_norm", "objective/clipped_high_share")} == {"double"}
    assert table["objective/clipped_high_share"].to_pylist() == [None, 0.1, None, None]
    assert table["grad_norm"].to_pylist() == [None, None, None, 2.0]
    # NaN is a value that was measured; null is one that was not.
    assert math.isnan(table["accuracy"].to_pylist()[1])
    assert table["collapse_step"].to_pylist() == [20, 20, None, None]


def test_a_row_for_every_evaluation(tmp_path: Path) -> None:
    config = make_config("naive", "asympo")
    write_results(config, make_results(config, evaluations=4), tmp_path / "results.parquet")
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.num_rows == 2 * 2 * 2 * 4
    assert sum(table["final"].to_pylist()) == 8


def test_no_runs(tmp_path: Path) -> None:
    write_results(make_config("naive"), [], tmp_path / "results.parquet")
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.num_rows == 0
    assert table.column_names[-1] == "accuracy"
