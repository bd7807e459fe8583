"""What a grid found."""

import math

import pytest

from driftproof.evaluation.score import bootstrap, wilson
from driftproof.lab.grid import Cell, grid_cells
from driftproof.lab.summary import accuracies, collapsed_at, missing_cells, summarize
from tests.lab.grids import make_config, make_result, make_results


def cells(count: int) -> list[Cell]:
    """Runs that differ by their seeds."""
    return grid_cells(make_config("naive", staleness=[16], seeds=list(range(count))), {})


def test_over_the_seeds() -> None:
    runs = [[0.3, 0.6, 0.1], [0.3, 0.1, 0.1], [0.3, 0.4, 0.5]]
    [summary] = summarize([make_result(cell, run) for cell, run in zip(cells(3), runs, strict=True)])
    assert (summary.view, summary.label, summary.staleness, summary.seeds) == ("given", "naive", 16, (0, 1, 2))
    assert summary.base == pytest.approx(0.3)
    assert summary.final == pytest.approx(0.7 / 3)
    assert summary.final_interval == bootstrap([0.1, 0.1, 0.5])
    assert summary.best == pytest.approx((0.6 + 0.3 + 0.5) / 3)
    assert summary.collapse_steps == (20, 40)
    assert summary.median_collapse_step == 30
    assert summary.collapse_interval == wilson(2, 3)


def test_a_run_without_numbers_counts_as_0() -> None:
    result = make_result(cells(1)[0], [0.3, 0.5, math.nan])
    assert accuracies(result) == [0.3, 0.5, 0.0]
    assert collapsed_at(result) == 40
    [summary] = summarize([result])
    assert (summary.final, summary.best, summary.final_interval) == (0.0, 0.5, (0.0, 0.0))


def test_no_runs() -> None:
    assert summarize([]) == []


def test_one_for_each_view_objective_age_and_rate() -> None:
    config = make_config("naive", "asympo", views=["given", "tuned"], learning_rates=[1e-3, 1e-2], tuning_seeds=[8, 9])
    found = summarize(make_results(config))
    assert [summary.view for summary in found] == ["tuning"] * 4 + ["given"] * 4 + ["tuned"] * 4
    assert all(summary.runs == 2 for summary in found)
    assert {summary.lr for summary in found if summary.view == "tuning"} == {1e-3, 1e-2}


def test_what_is_missing() -> None:
    config = make_config("naive", "asympo", views=["given", "tuned"], learning_rates=[1e-3, 1e-2], tuning_seeds=[9])
    assert missing_cells(config, make_results(config)) == []
    without = make_results(config, keep=lambda cell: cell.seed != 1)
    assert {cell.seed for cell in missing_cells(config, without)} == {1}
    assert len(missing_cells(config, without)) == 8
    # Before the sweep is whole, nobody knows the rates of the view "tuned".
    started = make_results(config, keep=lambda cell: cell.view == "tuning" and cell.lr == 1e-2)
    missing = missing_cells(config, started)
    assert [cell.lr for cell in missing if cell.view == "tuned"] == [0.0] * 8
    assert len(missing) == 2 + 16
