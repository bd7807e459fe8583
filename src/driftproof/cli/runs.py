"""`driftproof groups` and `driftproof report`: a look at a run."""

from __future__ import annotations

import argparse
import errno
from pathlib import Path

from rich.console import Console

from driftproof.cli.commands import Commands, command
from driftproof.config import Config
from driftproof.run import LATEST, RunDirectory


def add(commands: Commands) -> None:
    groups = command(commands, "groups", _groups, "look at the rollouts of a run")
    groups.add_argument("run", type=Path)
    groups.add_argument("--by", choices=("best", "worst", "age", "prompt"), default="best")
    groups.add_argument("--limit", type=int, default=10)
    report = command(commands, "report", _report, "draw a run's picture and print its summary")
    report.add_argument("run", type=Path)


def _groups(known: argparse.Namespace, _: list[str]) -> int:
    from driftproof.ledger.reader import LedgerReader
    from driftproof.report.tables import groups_table
    from driftproof.tasks.codec import Codec

    config = Config.written_in(known.run)
    codec = Codec(config.model.path)
    with LedgerReader(known.run / "ledger.sqlite") as ledger:
        Console().print(groups_table(ledger, codec.decode, by=known.by, limit=known.limit))
    return 0


def _report(known: argparse.Namespace, _: list[str]) -> int:
    Config.written_in(known.run)
    show_result(Console(), RunDirectory(path=known.run))
    return 0


def show_result(console: Console, directory: RunDirectory) -> None:
    """Draw a run's picture, write its summary and print it."""
    from driftproof.errors import RunError
    from driftproof.ledger.reader import LedgerReader
    from driftproof.report.picture import draw
    from driftproof.report.summary import summarize, write_summary
    from driftproof.report.tables import before_after_table, events_table

    model, picture = directory.snapshots / LATEST, str(directory.picture)
    with LedgerReader(directory.ledger) as ledger:
        summary = summarize(ledger, model)
        try:
            write_summary(directory.summary, summary)
            draw(ledger, directory.picture)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise RunError(
                    f"summary and picture of {directory.path} cannot be written: {error.strerror}; nothing of the run "
                    f"is lost: make space, and: driftproof report {directory.path}"
                ) from error
            picture = f"none: {error.strerror}"
        console.print(before_after_table(summary))
        if events := ledger.events():
            console.print(events_table(events))
    for line in (
        f"groups   {summary.groups_committed} committed, {summary.groups_trained} trained; "
        f"{summary.groups_of_equal_reward} of {summary.groups_trained} groups had equal rewards",
        f"picture  {picture}",
        f"model    {model.resolve()}",
        f"next     driftproof groups {directory.path}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
