"""How long the groups of a run keep what they hold.

Guarantees: nothing that a resume from any checkpoint could need is ever forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from driftproof.ledger.store import Ledger
from driftproof.run import RunDirectory, locked, step_directories


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a pruning came to."""

    groups: int
    """Whose content was forgotten now."""
    step: int
    """The last step whose groups are pruned."""
    steps: int
    """Done."""
    freed: int
    """Bytes on disk."""


def prunable_step(step: int, keep_steps: int, checkpoints: Sequence[int]) -> int:
    """The last step whose groups may be pruned; 0 is none.

    Kept are the groups of the last `keep_steps` of `step` steps, all that is trained after the oldest of the
    `checkpoints` (by step), and everything where there is no checkpoint: a resume may begin at any of them.
    """
    return max(min([step - keep_steps, *checkpoints]), 0) if checkpoints else 0


def prune(ledger: Ledger, checkpoints: Path, keep_steps: int) -> int:
    """Forget what may be forgotten of a run whose checkpoints lie in a directory; of how many groups."""
    return ledger.prune(prunable_step(ledger.step, keep_steps, list(step_directories(checkpoints))))


def prune_run(run: Path, keep_steps: int) -> Pruned:
    """Prune a run that nobody is working on, and give the space back to the file system.

    Raises:
        UnavailableError: not a run, or one that is being worked on. LedgerError: the ledger is damaged.
    """
    directory = RunDirectory(path=run)
    with locked(run), Ledger(directory.ledger) as ledger:
        before = _bytes(run)
        groups = prune(ledger, directory.checkpoints, keep_steps)
        ledger.compact()
        return Pruned(groups=groups, step=ledger.pruned_step, steps=ledger.step, freed=max(before - _bytes(run), 0))


def _bytes(run: Path) -> int:
    """Of the ledger, with its write-ahead log."""
    files = (RunDirectory(path=run).ledger, RunDirectory(path=run).ledger_log)
    return sum(path.stat().st_size for path in files if path.exists())
