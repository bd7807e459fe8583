"""Published weights: a snapshot is whole or it is not there.

A snapshot is a plain Hugging Face directory `step-00000042`, written under another name, fsynced, then renamed;
`latest` is a symbolic link that is swapped atomically. Never pickle.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from driftproof.faults import fault_points
from driftproof.run import (
    LATEST,
    partial_name,
    remove_at_once,
    rename_durably,
    step_directories,
    step_directory,
    step_of,
)
from driftproof.weights.files import WEIGHTS, write_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One published set of weights."""

    step: int
    path: Path


class Publisher:
    """Writes the snapshots of a run into `directory` and keeps the newest `keep`."""

    def __init__(self, directory: Path, model: Path, keep: int = 3) -> None:
        """`model`: the directory whose configuration and tokenizer every snapshot gets, hard-linked where possible."""
        if keep < 2:
            raise ValueError(f"keep is {keep}; at least 2, for a worker may still be reading the one before the newest")
        directory.mkdir(parents=True, exist_ok=True)
        for partial in directory.glob(".partial-step-*"):
            shutil.rmtree(partial)
        self.directory = directory
        self._model = model
        self._keep = keep

    def publish(self, step: int, state: Mapping[str, Tensor]) -> Snapshot:
        """Write the weights of `step`, unless they are there already, and only then make them the latest."""
        path = step_directory(self.directory, step)
        if not path.exists():
            self._write(path, state)
        link = partial_name(self.directory / LATEST)
        link.unlink(missing_ok=True)
        with fault_points("snapshot latest"):
            link.symlink_to(path.name)
            link.replace(self.directory / LATEST)
        with fault_points("snapshot prune"):
            for old in list_snapshots(self.directory)[: -self._keep]:
                remove_at_once(old.path)
        return Snapshot(step=step, path=path)

    def published(self) -> int:
        """The newest step whose weights a worker can load; -1 before the first."""
        newest = latest(self.directory)
        return newest.step if newest else -1

    def wait(self) -> None:
        """Return once all that `publish` was given can be loaded: at once, as `publish` writes before it returns."""

    def _write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        partial = partial_name(path)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for file in sorted(self._model.iterdir()):
            # Neither weights nor an index of them.
            if file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json"):
                _link_or_copy(file, partial / file.name)
        with fault_points("snapshot write"):
            write_tensors(partial / WEIGHTS, state)
        with fault_points("snapshot rename"):
            rename_durably(partial, path)


def discard_after(directory: Path, step: int) -> None:
    """Remove the snapshots of steps that a resume has undone; `latest` is unset until the next is published."""
    (directory / LATEST).unlink(missing_ok=True)
    for snapshot in list_snapshots(directory):
        if snapshot.step > step:
            remove_at_once(snapshot.path)


def latest(directory: Path) -> Snapshot | None:
    """The snapshot that `latest` names, or None before the first."""
    try:
        name = (directory / LATEST).readlink()
    except FileNotFoundError:
        return None
    return Snapshot(step=step_of(name), path=directory / name)


def list_snapshots(directory: Path) -> list[Snapshot]:
    """All complete snapshots, oldest first."""
    return [Snapshot(step=step, path=path) for step, path in step_directories(directory).items()]


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
