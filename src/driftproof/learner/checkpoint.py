"""The learner's whole state on disk: weights, optimizer, step, random state. Whole or not there; never pickle.

`checkpoints/step-00000042` holds `model.safetensors`, `optimizer.safetensors` and `state.json`. It is written under
another name, fsynced and renamed; the newest two are kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from driftproof.learner.learner import Learner
from driftproof.weights import WEIGHTS, fsync, replace_directory, write_weights

FORMAT_VERSION = 1
KEPT = 2


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be loaded; the message says why."""


def save_checkpoint(directory: Path, learner: Learner) -> Path:
    """Write the learner's state after its current step.

    Raises:
        OSError: no space, not writable; earlier checkpoints are untouched.
    """
    path = directory / f"step-{learner.step:08d}"
    partial = directory / f".partial-{path.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_weights(partial / WEIGHTS, learner.policy.model.state_dict())
    optimizer = learner.optimizer.state_dict()["state"]
    tensors = {f"{index}.{name}": value for index, state in optimizer.items() for name, value in state.items()}
    tensors["random_state"] = torch.get_rng_state()
    save_file(tensors, partial / "optimizer.safetensors")
    fsync(partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "step": learner.step}))
    fsync(partial / "state.json")
    replace_directory(partial, path)
    for old in list_checkpoints(directory)[:-KEPT]:
        shutil.rmtree(old)
    return path


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if path.is_dir())


def load_checkpoint(path: Path, learner: Learner) -> None:
    """Bring a learner, made from the same configuration, to the checkpoint's state.

    Raises:
        CheckpointError: another format, or tensors that are not this model's.
    """
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    if state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {state.get('format_version')}; this driftproof reads {FORMAT_VERSION}"
        )
    missing, unexpected = learner.policy.model.load_state_dict(load_file(path / WEIGHTS), strict=False)
    tied = set(learner.policy.model.state_dict()) - {name for name, _ in learner.policy.model.named_parameters()}
    if unexpected or set(missing) - tied:
        raise CheckpointError(
            f"{path} is of another model: missing {sorted(set(missing) - tied)[:3]}, unexpected {unexpected[:3]}"
        )
    tensors = load_file(path / "optimizer.safetensors")
    torch.set_rng_state(tensors.pop("random_state"))
    optimizer: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        optimizer.setdefault(int(index), {})[name] = value
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
    learner.step = state["step"]
