"""Real runs through the command line, small enough for every test."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftproof.cli.main import main
from driftproof.ledger.ledger import Ledger

LIMIT = 300.0
"""Seconds that a test waits for what a machine with nothing else to do has done in some."""

RECIPE = """
[run]
steps = 4
[objective]
name = "asympo"
[sampling]
max_tokens = 4
[engine]
slots = 16
[rollouts]
group_size = 4
max_staleness = 2
[learner]
groups_per_step = 4
lr = 1e-3
checkpoint_every = 2
[tracking]
tensorboard = false
"""


def write_recipe(directory: Path, model: Path, scorer: str = "parity") -> Path:
    """A recipe of four short steps on single digits, rewarded by a function of `scorers`."""
    data = directory / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+0=", "answer": str(i)}) + "\n" for i in range(10)))
    task = f'[task]\nname = "jsonl"\npath = "{data}"\nheldout = 2\nverifier = "scorers:{scorer}"\n'
    path = directory / "recipe.toml"
    path.write_text(f'{RECIPE}{task}[model]\npath = "{model}"\n')
    return path


@dataclass(frozen=True)
class Ended:
    """A command that came to its end."""

    code: int
    stdout: str
    stderr: str


def train(*arguments: object) -> Ended:
    """`driftproof train ...` to its end; learner and workers are processes, the command itself runs in this one."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        code = main(["train", *map(str, arguments)])
    return Ended(code, stdout.getvalue(), stderr.getvalue())


def launch(*arguments: object) -> subprocess.Popen[str]:
    """`driftproof train ...` as a process, going on in the background in a session of its own."""
    path = (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    return subprocess.Popen(
        [sys.executable, "-m", "driftproof.cli", "train", *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
    )


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Output and errors of a launched command that comes to its end."""
    return process.communicate(timeout=LIMIT)


def summary(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return result


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str], limit: float = LIMIT) -> None:
    """Until the run has done `step` steps; fails if it ends or takes longer."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if (run / "ledger.sqlite").exists():
            with Ledger(run / "ledger.sqlite") as ledger:
                if ledger.step >= step:
                    return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} within {limit} s")


def wait_until(condition: Callable[[], object], limit: float = LIMIT) -> None:
    """Until something is so; fails if it takes longer."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit} s"
        time.sleep(0.01)


def processes(run: Path) -> dict[str, int]:
    """The pids of a run's learner and workers, by name; each writes to the log that bears its name."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            log = (entry / "fd" / "2").readlink()
            forked = "multiprocessing.forkserver" in (entry / "cmdline").read_text()
        except OSError:
            continue
        # What a worker has started for its verifier shares its log.
        if forked and log.parent == run.resolve() / "logs":
            found[log.stem] = int(entry.name)
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def trained_once(run: Path, steps: int, groups_per_step: int) -> None:
    """Every dispatched group was trained exactly once, in the planned steps, in whole batches."""
    with Ledger(run / "ledger.sqlite") as ledger:
        records = list(ledger.records())
        assert [record.dispatch for record in records] == list(range(steps * groups_per_step))
        counts = [sum(record.trained_step == step for record in records) for step in range(1, steps + 1)]
        assert counts == [groups_per_step] * steps
        assert [metrics["step"] for metrics in ledger.steps()] == list(range(1, steps + 1))
