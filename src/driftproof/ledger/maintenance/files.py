"""Integrity of what a run keeps beside its ledger: checkpoints and snapshots.

Guarantees: reads names, sizes and headers alone, never a tensor, so that it takes no time however large a model is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from driftproof.run import LATEST, RunDirectory, step_directories
from driftproof.weights.checkpoints import checkpoint_problems, list_checkpoints, weights_problem
from driftproof.weights.files import WEIGHTS


def file_problems(run: Path) -> Iterator[str]:
    """A sentence on each checkpoint's or snapshot's file that is not whole."""
    directory = RunDirectory(path=run)
    found = {path: checkpoint_problems(path) for path in list_checkpoints(directory.checkpoints)}
    for path in step_directories(directory.snapshots).values():
        no_config = "" if (path / "config.json").is_file() else f"{path} has no config.json"
        found[path] = [problem for problem in (weights_problem(path / WEIGHTS), no_config) if problem]
    for path, problems in found.items():
        # A run that is being trained removes old ones meanwhile.
        if path.is_dir():
            yield from problems
    newest = directory.snapshots / LATEST
    # It is swapped before the snapshot that it named is removed.
    if newest.is_symlink() and not newest.is_dir():
        yield f"{newest} names {newest.readlink()}, which is not there"
