"""`driftproof lab`: a grid of runs, and the report on it."""

import sys
from argparse import Namespace
from contextlib import closing
from pathlib import Path

from rich.console import Console

from driftproof.cli.commands import Commands, command, located, print_lines
from driftproof.lab.settings import LabConfig


def add(commands: Commands) -> None:
    lab = commands.add_parser(
        "lab",
        help="run a grid of objectives, staleness and seeds, and report on it",
        usage="driftproof lab RECIPE [--dry-run] [--section.key value ...]\n       driftproof lab report DIRECTORY",
        allow_abbrev=False,
    )
    actions = lab.add_subparsers(prog="driftproof lab", required=True, metavar="ACTION")
    run = command(actions, "run", _run, "run a grid; this word may be left out", settings=True)
    run.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML recipe with a [lab] section")
    run.add_argument("--dry-run", action="store_true", help="check everything, list the runs to be made, stop")
    report = command(actions, "report", _report, "draw the report of a grid again")
    report.add_argument("directory", type=Path, metavar="DIRECTORY", help="directory of a grid")


def _run(known: Namespace) -> None:
    from driftproof.lab.grid import planned_cells
    from driftproof.lab.progress import GridProgress
    from driftproof.lab.report import check_store
    from driftproof.lab.runner import check_grid, read_results, run_grid
    from driftproof.lab.summary import missing_cells
    from driftproof.runtime.resources import quiet_libraries

    quiet_libraries()
    check_store()
    config = located(LabConfig.load(known.recipe, known.settings))
    directory = config.lab.directory or Path("labs") / config.run.name
    told: list[str] = []
    check_grid(config, lambda text: told.append(f"warning: {text}"), told.append)
    found = read_results(config, directory)
    for text in told:
        print(text, file=sys.stderr)
    if known.dry_run:
        missing = missing_cells(config, found)
        for cell in missing:
            print(cell.key if cell.lr else cell.key.replace("lr0.0", "lr-of-the-sweep"))
        print(f"{len(missing)} runs to be made, {len(found)} there already, in {directory}")
        return
    console = Console()
    try:
        with closing(GridProgress(console, len(found))) as progress:
            run_grid(config, directory, progress)
    except KeyboardInterrupt:
        done, total = len(read_results(config, directory)), len(planned_cells(config))
        console.print(f"stopped: {done} of {total} runs are done; the same command goes on", highlight=False)
        raise
    _show(console, config, directory)


def _report(known: Namespace) -> None:
    from driftproof.lab.report import check_store

    check_store()
    _show(Console(), LabConfig.written_in(known.directory), known.directory)


def _show(console: Console, config: LabConfig, directory: Path) -> None:
    from driftproof.lab.report import missing_lines, result_table, write_report
    from driftproof.lab.runner import read_results
    from driftproof.lab.summary import missing_cells, summarize, views_of

    results = read_results(config, directory)
    files = write_report(config, results, directory)
    summaries = summarize(results)
    for view in views_of(summaries):
        console.print(result_table(config, view, [summary for summary in summaries if summary.view == view]))
    print_lines(console, *missing_lines(config, missing_cells(config, results)), *map(str, files))
