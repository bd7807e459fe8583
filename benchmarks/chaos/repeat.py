"""Killed and resumed, a deterministic run ends as the one that was left alone, bit by bit."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.chaos import processes
from benchmarks.chaos.storm import PATIENCE_SECONDS, StormError, spied_environment
from benchmarks.harness import DRIFTPROOF, QUICKSTART, ROOT
from driftproof import faults
from driftproof.ledger.ledger import Ledger

PLACES = (
    "after ledger take",
    "after ledger finish_step",
    "before checkpoint rename",
    "after snapshot rename",
    "before ledger commit",
    "after ledger make_durable",
)
MEASURED = ("time/", "rollout/")
"""What the metrics tell of the machine and not of the training: durations, and the work of a process's life."""


def bit_identical(directory: Path, model: Path, seed: int, kills: int, steps: int, say: Callable[[str], None]) -> bool:
    """Whether weights, optimizer and metrics of a sync run come out the same after `kills` kills.

    Raises:
        StormError: a run hangs or cannot be resumed.
    """
    directory.mkdir(parents=True)
    options = {
        "--model.path": model, "--run.steps": steps, "--run.seed": seed, "--runtime.mode": "sync",
        "--evaluation.prompts": 0, "--learner.checkpoint_every": 4, "--tracking.tensorboard": "false",
    }  # fmt: skip
    arguments = [str(part) for pair in options.items() for part in pair]
    undisturbed, disturbed = directory / "undisturbed", directory / "disturbed"
    planted = directory / "faults"
    planted.mkdir()
    first = _start(directory, "train", QUICKSTART, *arguments, "--run.directory", undisturbed)
    second = _start(directory, "train", QUICKSTART, *arguments, "--run.directory", disturbed)
    draw = random.Random(seed)
    for kill in range(kills):
        place = PLACES[(seed + kill // 2) % len(PLACES)] if kill % 2 else ""
        target = draw.randint(1, max(1, steps // kills - 1)) + steps * kill // kills
        if not _kill_at(target, place, disturbed, planted, second):
            say("the deterministic run was over before the last kill")
            return False
        second.wait(PATIENCE_SECONDS)
        say(f"deterministic run: killed {place or 'at a random moment'}, after step {target} or later; resuming")
        second = _start(directory, "train", "--resume", disturbed)
    for process in (first, second):
        if process.wait(4 * PATIENCE_SECONDS):
            raise StormError(f"a deterministic run ended with code {process.returncode}; see {directory}/commands.log")
    differences = compare(undisturbed, disturbed)
    for difference in differences:
        say(f"deterministic run: {difference}")
    return not differences


def compare(one: Path, other: Path) -> list[str]:
    """In what two finished runs differ."""
    differences = []
    checkpoints = [sorted((run / "checkpoints").glob("step-*"))[-1] for run in (one, other)]
    snapshots = [run / "snapshots" / "latest" for run in (one, other)]
    for (mine, theirs), name in (
        (snapshots, "model.safetensors"),
        (checkpoints, "model.safetensors"),
        (checkpoints, "optimizer.safetensors"),
    ):
        left, right = load_file(mine / name), load_file(theirs / name)
        unequal = [key for key in left.keys() | right.keys() if not _same(left.get(key), right.get(key))]
        if unequal:
            differences.append(f"{len(unequal)} tensors of {theirs / name} differ, {sorted(unequal)[0]} among them")
    metrics = [_metrics(run) for run in (one, other)]
    unequal = sorted({key for a, b in zip(*metrics, strict=False) for key in a.keys() | b.keys() if a[key] != b[key]})
    if unequal or len(metrics[0]) != len(metrics[1]):
        differences.append(f"metrics differ: {unequal or 'their number'}")
    return differences


def _same(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    return left is not None and right is not None and torch.equal(left, right)


def _metrics(run: Path) -> list[dict[str, Any]]:
    with Ledger(run / "ledger.sqlite") as ledger:
        return [
            {name: repr(value) for name, value in step.items() if not name.startswith(MEASURED)}
            for step in ledger.steps()
        ]


def _kill_at(step: int, place: str, run: Path, planted: Path, command: subprocess.Popen[bytes]) -> bool:
    """Kill the learner after `step`, at a place if one is given; whether it came so far."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (run / "ledger.sqlite").exists() or _step(run) < step:
        if time.monotonic() > deadline:
            raise StormError(f"waited {PATIENCE_SECONDS:.0f} s for step {step} of the deterministic run")
        if command.poll() is not None:
            return False
        time.sleep(0.01)
    if place:
        fault = faults.plant(planted, place, "kill")
        while fault.exists():
            if command.poll() is not None:
                return False
            time.sleep(0.01)
        return True
    learners = processes.find(run, None)["learner"]
    return bool(learners) and processes.kill(learners[0])


def _step(run: Path) -> int:
    with Ledger(run / "ledger.sqlite") as ledger:
        return ledger.step


def _start(directory: Path, *command: object) -> subprocess.Popen[bytes]:
    with (directory / "commands.log").open("ab") as log:
        return subprocess.Popen(
            [*DRIFTPROOF, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=spied_environment(directory / "faults"),
            cwd=ROOT,
            start_new_session=True,
        )
