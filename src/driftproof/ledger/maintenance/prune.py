"""Pruning. Guarantees: nothing that a resume from any checkpoint could need is ever forgotten."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from driftproof.errors import LedgerError
from driftproof.ledger.steps import Steps
from driftproof.run import RunDirectory, locked, step_directories


def prunable_step(step: int, keep_steps: int, checkpoints: Sequence[int]) -> int:
    """The last step whose groups may be pruned; 0 is none.

    Kept are the groups of the last `keep_steps` of `step` steps, all that is trained after the oldest of the
    `checkpoints` (by step), and everything where there is no checkpoint: a resume may begin at any of them.
    """
    return max(min([step - keep_steps, *checkpoints]), 0) if checkpoints else 0


def prune(ledger: Steps, checkpoints: Path, keep_steps: int) -> int:
    """Forget what no checkpoint of this directory can need; the number of groups whose content is gone."""
    return ledger.prune(prunable_step(ledger.step, keep_steps, list(step_directories(checkpoints))))


def prune_run(run: Path, keep_steps: int) -> str:
    """Prune a run that nobody is working on, and give the space back to the file system; the outcome for people.

    Raises a LedgerError where the ledger is damaged, or there is no space to write it anew.
    """
    directory = RunDirectory(path=run)
    with locked(run), Steps(directory.ledger) as ledger:
        before = _bytes(directory)
        try:
            groups = prune(ledger, directory.checkpoints, keep_steps)
            ledger.compact()
        except (sqlite3.OperationalError, OSError) as error:
            raise LedgerError(
                f"{directory.ledger} cannot be written: {error}; no group is lost that could be needed. Pruning takes "
                "free space for what is removed, and giving it back as much as the ledger keeps: make some, and prune "
                "again"
            ) from error
        freed = max(before - _bytes(directory), 0)
        upto = f"up to step {ledger.pruned_step:,} of {ledger.step:,}"
        return f"{groups:,} groups pruned, {upto}; {freed:,} bytes freed"


def _bytes(directory: RunDirectory) -> int:
    files = (directory.ledger, directory.ledger_log)
    return sum(path.stat().st_size for path in files if path.exists())
