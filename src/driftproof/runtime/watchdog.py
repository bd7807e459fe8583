"""When a run stands still: how that is noticed, and who waits for whom.

Guarantees: nothing here waits longer than a few seconds, or writes to the ledger.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from driftproof.ledger.records import Counters, Status
from driftproof.runtime.processes import STACKS

ANSWER_SECONDS = 3.0
"""How long processes may take to write their stacks."""

# What a frame of ours waits for or does, the innermost that is known.
_DOINGS = {
    "_wait_for_batch": "waits for groups",
    "_wait_for_snapshot": "waits for the first snapshot",
    "_checkpoint": "writes a checkpoint",
    "publish": "publishes weights",
    "finish_step": "records its step in the ledger",
    "_update": "computes an update",
    "train": "trains a step",
    "evaluate_heldout": "evaluates held-out prompts",
    "evaluate": "evaluates held-out prompts",
    "make_learner": "loads its model",
    "make_worker": "loads its model and starts its verifier",
    "collect": "waits for its engine",
    "load": "loads new weights",
    "_lease": "asks the ledger for prompts",
    "_commit": "commits groups to the ledger",
    "run": "waits for a prompt that it may lease, or for its verifier",
}
_FRAME = re.compile(r'File ".*?/driftproof/(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)')


class Standstill:
    """How long a run has got no further: no step was finished, no group committed, nothing evaluated."""

    def __init__(self, step: int, steps: int, *, stall_seconds: float, start_seconds: float) -> None:
        """`step`: where the run goes on; `steps`: of the whole run."""
        self._first, self._last = step, steps
        self._stall_seconds, self._start_seconds = stall_seconds, start_seconds
        self._progress: tuple[int, ...] = ()
        self._since = 0.0

    def exceeded(self, status: Status, evaluations: int, now: float) -> float | None:
        """The limit that was exceeded, in seconds, or None; to be asked again and again.

        Until the first step is done and after the last models are loaded and held-out prompts evaluated: that has a
        limit of its own.
        """
        progress = (status.step, status.ready + status.trained, evaluations)
        if progress != self._progress:
            self._progress, self._since = progress, now
        limit = self._start_seconds if status.step in (self._first, self._last) else self._stall_seconds
        return limit if now - self._since > limit else None


class Reports:
    """When each rollout worker last reported, seen by the counters that it leaves in the ledger."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Counters, float, bool]] = {}

    def started(self, worker: str, counters: Counters, now: float) -> None:
        """A worker is started (again); the counters are what was there before."""
        self._last[worker] = (counters, now, False)

    def silence(self, worker: str, counters: Counters, now: float) -> float:
        """Seconds since its last report, or since it was started."""
        if counters != self._last[worker][0]:
            self._last[worker] = counters, now, True
        return now - self._last[worker][1]

    def is_up(self, worker: str) -> bool:
        """Whether it has reported since it was started; before that it loads its model."""
        return self._last[worker][2]

    def forgive(self, now: float) -> None:
        """All begin anew: somebody has kept the others from reporting."""
        self._last = {worker: (counters, now, up) for worker, (counters, _, up) in self._last.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """What a process was doing when it was asked."""

    pid: int
    stopped: bool
    """It was stopped by a signal, and was made to go on so that it could answer."""
    text: str
    """The stacks of its threads as faulthandler writes them; "" where it did not answer."""

    @property
    def doing(self) -> str:
        """In words, with the place in driftproof's code."""
        stopped = "was stopped by a signal (SIGSTOP, SIGTSTP); it " if self.stopped else ""
        if not self.text:
            return f"{stopped}did not answer within {ANSWER_SECONDS:.0f} s"
        # The main thread comes last.
        frames = list(_FRAME.finditer(self.text.strip().split("\n\n")[-1]))
        if not frames:
            return f"{stopped}is outside of driftproof's code"
        known = next((_DOINGS[frame["function"]] for frame in frames if frame["function"] in _DOINGS), "is busy")
        return f"{stopped}{known} ({frames[0]['file']}:{frames[0]['line']}, {frames[0]['function']})"

    @property
    def waits_for_groups(self) -> bool:
        return not self.stopped and "in _wait_for_batch" in self.text


def ask_for_stacks(processes: Mapping[str, int], logs: Path) -> dict[str, Stacks]:
    """The stacks of processes (pids by name), which they write to `logs/NAME.log`."""
    begun = {name: _size(logs / f"{name}.log") for name in processes}
    stopped = {name: is_stopped(pid) for name, pid in processes.items()}
    for name, pid in processes.items():
        with suppress(ProcessLookupError):
            os.kill(pid, STACKS)
            if stopped[name]:
                os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + ANSWER_SECONDS
    answers = {name: _written(logs / f"{name}.log", begun[name]) for name in processes}
    # The main thread, which comes last, ends with the module that was started.
    while not all("in <module>\n" in text for text in answers.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
        answers = {name: _written(logs / f"{name}.log", begun[name]) for name in processes}
    return {name: Stacks(pid=pid, stopped=stopped[name], text=_dump(answers[name])) for name, pid in processes.items()}


def who_waits(stacks: Mapping[str, Stacks], status: Status, groups_per_step: int, silences: Mapping[str, float]) -> str:
    """A line for each process: what it does, and what it lacks."""
    lines = []
    for name, found in stacks.items():
        line = f"{name} (pid {found.pid}) {found.doing}"
        if found.waits_for_groups:
            line += f": {status.ready} of {groups_per_step} are ready, {status.leased} are leased"
        if silences.get(name, 0.0) >= 1:
            line += f"; last heard of {silences[name]:.0f} s ago"
        lines.append(line)
    if not any(name in silences or name.startswith("worker") for name in stacks):
        lines.append(f"no rollout worker of the run's own: {status.leased} groups are leased to others, or to nobody")
    return "\n".join(lines)


def write_stacks(path: Path, summary: str, stacks: Mapping[str, Stacks]) -> None:
    """All that is known, for whoever looks for the cause."""
    parts = [summary, *(f"{name} (pid {found.pid})\n{found.text or 'no answer'}" for name, found in stacks.items())]
    path.write_text("\n\n".join(parts) + "\n")


def _dump(text: str) -> str:
    """Of what was written to a log, the stacks."""
    start = re.search(r"^(Current thread|Thread) 0x", text, re.MULTILINE)
    return text[start.start() :] if start else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _written(path: Path, start: int) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The name, in parentheses, may hold anything.
    return status.rpartition(")")[2].split()[0] == "T"
