"""What a run keeps beside its ledger: whether its checkpoints and snapshots are whole.

Guarantees: reads names, sizes and headers alone, never a tensor, so that it takes no time however large a model is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from driftproof.run import LATEST, RunDirectory, step_directories

LARGEST_HEADER = 100_000_000
"""Bytes; what the safetensors format allows."""


def file_problems(run: Path) -> Iterator[str]:
    """What is wrong with a run's checkpoints and snapshots; a run that is being trained may remove old ones."""
    for step, directory in step_directories(RunDirectory(path=run).checkpoints).items():
        files = ["model.safetensors", "optimizer.safetensors"]
        files += ["value_head.safetensors"] * (directory / "value_head.safetensors").exists()
        yield from _present(directory, [*_weights_problems(directory, files), *_state_problems(directory, step)])
    for directory in step_directories(RunDirectory(path=run).snapshots).values():
        problems = _weights_problems(directory, ["model.safetensors"])
        if not (directory / "config.json").is_file():
            problems.append(f"{directory} has no config.json")
        yield from _present(directory, problems)
    newest = RunDirectory(path=run).snapshots / LATEST
    # It is swapped before the snapshot that it named is removed.
    if newest.is_symlink() and not newest.is_dir():
        yield f"{newest} names {newest.readlink()}, which is not there"


def safetensors_problem(path: Path) -> str:
    """Empty where a file is as long as its header says, else what is wrong with it."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST_HEADER):
                return f"{path} is cut off: its {size:,} bytes have no whole header"
            header = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except FileNotFoundError:
        return f"{path} is missing"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return f"{path} has a header that cannot be read"
    return "" if size == expected else f"{path} has {size:,} bytes; its header says {expected:,}"


def is_whole(checkpoint: Path, step: int) -> bool:
    """Whether a run could go on from a checkpoint, as far as sizes and headers tell."""
    files = ["model.safetensors", "optimizer.safetensors"]
    return not [*_weights_problems(checkpoint, files), *_state_problems(checkpoint, step)]


def _weights_problems(directory: Path, names: list[str]) -> list[str]:
    return [problem for name in names if (problem := safetensors_problem(directory / name))]


def _state_problems(directory: Path, step: int) -> list[str]:
    path = directory / "state.json"
    try:
        found = json.loads(path.read_text())["step"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return [f"{path} cannot be read: {error}"]
    return [] if found == step else [f"{path} is of step {found}"]


def _present(directory: Path, problems: list[str]) -> list[str]:
    """None of a directory that was removed under our eyes."""
    return problems if directory.is_dir() else []
