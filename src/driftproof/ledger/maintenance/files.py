"""What a run keeps beside its ledger: whether its checkpoints and snapshots are whole.

Guarantees: reads names, sizes and headers alone, never a tensor, so that it takes no time however large a model is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from driftproof.run import LATEST, RunDirectory, step_directories
from driftproof.weights.checkpoints import checkpoint_problems, list_checkpoints, weights_problem
from driftproof.weights.files import WEIGHTS


def file_problems(run: Path) -> Iterator[str]:
    """What is wrong with a run's checkpoints and snapshots; a run that is being trained may remove old ones."""
    for directory in list_checkpoints(RunDirectory(path=run).checkpoints):
        yield from _present(directory, checkpoint_problems(directory))
    for directory in step_directories(RunDirectory(path=run).snapshots).values():
        problem = weights_problem(directory / WEIGHTS)
        problems = [problem] if problem else []
        if not (directory / "config.json").is_file():
            problems.append(f"{directory} has no config.json")
        yield from _present(directory, problems)
    newest = RunDirectory(path=run).snapshots / LATEST
    # It is swapped before the snapshot that it named is removed.
    if newest.is_symlink() and not newest.is_dir():
        yield f"{newest} names {newest.readlink()}, which is not there"


def _present(directory: Path, problems: list[str]) -> list[str]:
    """None of a directory that was removed under our eyes."""
    return problems if directory.is_dir() else []
