"""Tables of whole grids and of parts of them."""

from __future__ import annotations

import pytest
from rich.console import Console

from driftproof.lab.experiment import Result
from driftproof.lab.grid import age_name, planned_cells
from driftproof.lab.report import markdown, missing_lines, result_table, result_text
from driftproof.lab.settings import LabConfig
from driftproof.lab.summary import missing_cells, summarize, views_of
from tests.lab.grids import make_config, make_result, make_results


def shown(config: LabConfig, results: list[Result]) -> list[list[str]]:
    """The lines of all tables, cut into their columns."""
    console = Console(width=200)
    summaries = summarize(results)
    with console.capture() as capture:
        for view in views_of(summaries):
            console.print(result_table(config, view, [summary for summary in summaries if summary.view == view]))
    lines = [line.strip() for line in capture.get().splitlines()]
    return [[part.strip() for part in line.split("  ") if part.strip()] for line in lines if line]


def report(config: LabConfig, results: list[Result]) -> str:
    return markdown(config, summarize(results), missing_cells(config, results), {"Accuracy": "accuracy.png"})


def test_objectives_are_rows_and_ages_columns() -> None:
    config = make_config("naive", "asympo", staleness=[0, 16])
    finals = iter([0.81, 0.62, 0.01, 0.72, 0.83, 0.66, 0.03, 0.74])
    title, header, _, naive, asympo = shown(
        config, [make_result(cell, [0.3, 0.8, next(finals)]) for cell in planned_cells(config)]
    )
    assert title == ["Every objective at its given learning rate"]
    assert header == ["objective", "age 0", "age 16"]
    assert naive == ["naive", "0.82 [0.81, 0.83]", "0.02 [0.01, 0.03] ✗2/2"]
    assert asympo == ["asympo", "0.64 [0.62, 0.66]", "0.73 [0.72, 0.74]"]


def test_a_sweep_has_its_rates_as_columns() -> None:
    config = make_config("naive", "asympo", views=["tuned"], learning_rates=[1e-3, 1e-4], tuning_seeds=[9])
    lines = shown(config, make_results(config, keep=lambda cell: cell.view == "tuning"))
    assert lines[1] == ["objective", "lr 0.0001", "lr 0.001"]
    assert [line[0] for line in lines[3:]] == ["naive", "asympo"]


def test_a_part_of_a_grid() -> None:
    config = make_config("naive", "asympo", seeds=[0, 1, 2])
    part = make_results(config, keep=lambda cell: cell.label == "naive" and cell.seed < 1 + cell.staleness // 8)
    *_, naive, asympo = shown(config, part)
    assert naive == ["naive", "0.51 (1 of 3 seeds)", "0.08 [0.07, 0.09] ✗3/3"]
    assert asympo == ["asympo", "-", "-"]
    lines = missing_lines(config, missing_cells(config, part))
    assert lines == ["Missing: 8 of 12 runs of the view 'given'."]
    assert lines[0] in report(config, part)
    assert "| asympo | - | - |" in report(config, part)


def test_nothing_is_missing_from_a_whole_grid() -> None:
    config = make_config("naive")
    assert missing_lines(config, missing_cells(config, make_results(config))) == []
    assert "Missing" not in report(config, make_results(config))


def test_no_runs() -> None:
    config = make_config("naive", views=["given", "tuned"], learning_rates=[1e-3])
    assert shown(config, []) == []
    text = report(config, [])
    assert "Missing: 2 of 2 runs of the view 'tuning'." in text
    assert "Missing: 4 of 4 runs of the view 'tuned'." in text


def test_the_report_says_what_one_needs_to_read_it() -> None:
    config = make_config("naive", "asympo", staleness=[16], seeds=[0, 1])
    text = report(config, make_results(config))
    assert "| naive | 1e-06 | age 16 | 2 | 0.330 | 0.070 [0.065, 0.075]" in text
    assert "| 2/2 [0.34, 1.00] | 70 |" in text
    for part in ("seeds 0, 1.", "A run has collapsed at step s", "bootstrap", "Wilson", "![Accuracy](accuracy.png)"):
        assert part in text
    assert report(config, make_results(config)) == text


def test_labels_disturb_neither_terminal_nor_markdown() -> None:
    label = "a|b *c* [red] \x1b[2J<i>"
    config = make_config(objectives=[{"name": "naive", "label": label}], staleness=[0], seeds=[0])
    results = make_results(config)
    assert shown(config, results)[-1][0] == "a|b *c* [red] \\x1b[2J<i>"
    assert "| a\\|b \\*c\\* [red] \\\\x1b[2J\\<i\\> |" in report(config, results)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["age 0", "age 16"]),
        ({"schedule": "periodic"}, ["age 0", "published every 16"]),
        ({"schedule": "replay", "replay": "runs/some"}, ["replayed ages", "replayed ages"]),
    ],
)
def test_what_an_age_is_called(settings: dict[str, str], names: list[str]) -> None:
    config = make_config("naive", **settings)
    assert [age_name(config, staleness) for staleness in (0, 16)] == names


def test_one_result() -> None:
    config = make_config("naive", seeds=[0])
    [summary] = summarize(make_results(config, keep=lambda cell: cell.staleness == 0))
    assert result_text(summary, 1) == "0.51"


def test_runs_that_stopped_learning_numbers() -> None:
    config = make_config("naive", staleness=[0], seeds=[0])
    cell = make_results(config)[0].cell
    assert shown(config, [make_result(cell, [0.3, float("nan")])])[-1] == ["naive", "0.00 ✗1/1"]
