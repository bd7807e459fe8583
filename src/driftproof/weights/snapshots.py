"""Published weights: a snapshot is whole or it is not there.

A snapshot is a plain Hugging Face directory `step-00000042`, written under another name, fsynced, then renamed;
`latest` is a symbolic link that is swapped atomically. Never pickle.

Guarantees: a snapshot shares no file with the base model or another snapshot; its configuration names the type that its
weights have, so that what is opened is what was trained.
"""

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from driftproof.weights.files import TEMPLATES, WEIGHTS, other_files, write_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One published set of weights."""

    step: int
    path: Path


class Publisher:
    """Writes the snapshots of a run into `directory` and keeps the newest `keep`."""

    def __init__(self, directory: Path, model: Path, keep: int = 3) -> None:
        """`model`: the directory whose configuration, tokenizer and chat templates are copied into every snapshot."""
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
        files = other_files(self._model)
        # All are forced to disk at once, which takes as long as one.
        with ThreadPoolExecutor(len(files) or 1) as pool:
            written = [pool.submit(_flush, _write_file(partial, path, name, files[name], state)) for name in files]
            with fault_points("snapshot write"):
                write_tensors(partial / WEIGHTS, state)
            for flushed in written:
                flushed.result()
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


def _write_file(partial: Path, path: Path, name: str, source: Path, state: Mapping[str, Tensor]) -> Path:
    """Copy a file of the base model into the snapshot that will be `path`, which errors name."""
    content, copy = source.read_bytes(), partial / name
    try:
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(_with_dtype(content, state) if name == "config.json" else content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path / name)) from error
    return copy


def _flush(file: Path) -> None:
    """Force a copied file, and its entry in a folder of its own, to disk."""
    for path in (file, file.parent)[: 1 + (file.parent.name == TEMPLATES)]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _with_dtype(content: bytes, state: Mapping[str, Tensor]) -> bytes:
    """A `config.json` whose type is that of the weights beside it; unchanged where it agrees, or names none."""
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) != 1:
        return content
    (dtype,) = dtypes
    config = json.loads(content)
    return (json.dumps(config, indent=2) + "\n").encode() if _set_dtype(config, dtype) else content


def _set_dtype(config: Any, dtype: str) -> bool:
    """Set the type that a configuration, or one within it, names; whether it was another."""
    if not isinstance(config, dict):
        return False
    changed = [_set_dtype(value, dtype) for value in config.values()]
    for key in {"dtype", "torch_dtype"} & config.keys():
        changed.append(config[key] != dtype)
        config[key] = dtype
    return any(changed)
