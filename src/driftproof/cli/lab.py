"""`driftproof lab`: a grid of runs, and the report on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from driftproof.cli.commands import Commands, command
from driftproof.config import load_config
from driftproof.lab.settings import LabConfig

if TYPE_CHECKING:
    from driftproof.lab.runner import Result


def add(commands: Commands) -> None:
    lab = commands.add_parser(
        "lab",
        help="run a grid of objectives, staleness and seeds, and report on it",
        usage="driftproof lab RECIPE [--dry-run] [--section.key value ...]\n       driftproof lab report DIRECTORY",
        allow_abbrev=False,
    )
    actions = lab.add_subparsers(required=True, metavar="ACTION")
    run = command(actions, "run", _run, "run a grid; this word may be left out", settings=True)
    run.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML recipe with a [lab] section")
    run.add_argument("--dry-run", action="store_true", help="check everything, list the runs to be made, stop")
    report = command(actions, "report", _report, "draw the report of a grid again")
    report.add_argument("directory", type=Path, metavar="DIRECTORY", help="directory of a grid")


def _run(known: argparse.Namespace, settings: list[str]) -> int:
    from driftproof.lab.grid import planned_cells
    from driftproof.lab.progress import GridProgress
    from driftproof.lab.report import check_store
    from driftproof.lab.runner import check_grid, read_results, run_grid
    from driftproof.runtime.resources import quiet_libraries

    quiet_libraries()
    check_store()
    config = load_config(known.recipe, settings, LabConfig)
    directory = config.lab.directory or Path("labs") / config.run.name
    check_grid(config)
    found = read_results(config, directory)
    if known.dry_run:
        _show_plan(config, directory, found)
        return 0
    console = Console()
    progress = GridProgress(console, len(found))
    try:
        run_grid(config, directory, progress)
    except KeyboardInterrupt:
        progress.close()
        done, total = len(read_results(config, directory)), len(planned_cells(config))
        console.print(f"stopped: {done} of {total} runs are done; the same command goes on", highlight=False)
        raise
    finally:
        progress.close()
    _show_lab(console, config, directory)
    return 0


def _report(known: argparse.Namespace, _: list[str]) -> int:
    from driftproof.lab.report import check_store

    check_store()
    _show_lab(Console(), LabConfig.written_in(known.directory), known.directory)
    return 0


def _show_lab(console: Console, config: LabConfig, directory: Path) -> None:
    from driftproof.lab.report import write_report
    from driftproof.lab.runner import read_results
    from driftproof.lab.summary import missing_cells, summarize
    from driftproof.lab.tables import missing_lines, result_table, views_of

    results = read_results(config, directory)
    files = write_report(config, results, directory)
    summaries = summarize(results)
    for view in views_of(summaries):
        console.print(result_table(config, view, [summary for summary in summaries if summary.view == view]))
    for line in (*missing_lines(config, missing_cells(config, results)), *map(str, files)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show_plan(config: LabConfig, directory: Path, found: Sequence[Result]) -> None:
    from driftproof.lab.summary import missing_cells

    missing = missing_cells(config, found)
    for cell in missing:
        print(cell.key if cell.lr else cell.key.replace("lr0.0", "lr-of-the-sweep"))
    print(f"{len(missing)} runs to be made, {len(found)} there already, in {directory}")
