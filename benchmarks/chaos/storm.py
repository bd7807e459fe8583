"""The storm itself: a run with an inbox and a stranger's worker, and what is done to them.

Guarantees: every event is drawn from the seed before the first happens (when it happens is the machine's affair); a
fault that was planted and never met, and one that could not be tried here, are reported as such.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import tomli_w

from benchmarks.chaos import processes, verifier, witness
from benchmarks.harness import DRIFTPROOF, QUICKSTART, ROOT
from driftproof import faults
from driftproof.errors import LedgerError
from driftproof.ledger.ledger import Ledger

VICTIMS = {"worker": 6, "verifier": 5, "learner": 3, "parent": 2, "inbox": 2, "stranger": 2}
"""Who is killed at random moments, and how often one against the other."""
FAILED = (
    "before ledger lease",
    "after ledger commit",
    "before ledger commit",
    "before ledger take",
    "before ledger finish_step",
    "before ledger rewind",
    "before snapshot write",
    "after snapshot rename",
    "before checkpoint write",
    "before checkpoint rename",
    "before disk fsync",
    faults.ENGINE,
)
"""Places that fail as a broken disk or engine does."""
SLOW = ("before ledger commit", "before ledger finish_step", "before snapshot write", "before disk fsync")
PROMPTS = 1000
STEPS = 100_000
"""More than a storm takes; when it is over the run is told to end soon."""
DISK_BYTES = 256 * 2**20
FROZEN_SECONDS = 12.0
"""Enough for a resumed run to have done some steps, on an idle machine."""
PATIENCE_SECONDS = 240.0
"""How long anything that must happen may take before the storm is given up as hanging."""


class StormError(RuntimeError):
    """The run hangs, or cannot be resumed; the message says how."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that is done to the run."""

    kind: str
    """`kill` at a random moment, `place` (a planted fault), `full disk`, or `frozen`: a process that stands still while
    its command is killed and the run is resumed, and then goes on."""
    what: str = ""
    """The victim, or the place."""
    action: faults.Action = "kill"
    wait: float = 0.0
    """Seconds before it happens."""
    steps: int = 0
    """Steps that a learner is left to do after a resume before it, or its parent, is killed."""


def plan(seed: int, kills: int, short: bool) -> list[Event]:
    """What happens, in order: `kills` kills in all (the last is at the end of the storm), and other faults besides."""
    draw = random.Random(seed)
    places = list(faults.PLACES)
    if short:
        places = [draw.choice([place for place in places if "take" in place or "snapshot" in place])]
    events = [Event("place", place) for place in places]
    failed, slow, full_disks, frozen = (FAILED[-1:], SLOW[:1], 0, 0) if short else (FAILED, SLOW, 3, 2)
    events += [Event("place", place, "fail") for place in failed] + [Event("place", place, "slow") for place in slow]
    events += [Event("full disk")] * full_disks + [Event("frozen", "learner")] * frozen
    # Before and after a rewind somebody must die for there to be one.
    extra = sum("rewind" in event.what for event in events)
    left = max(kills - 1 - len(places) - extra - frozen, len(VICTIMS))
    weights = {"worker": 1, "verifier": 1} if short else VICTIMS
    more = draw.choices(list(weights), list(weights.values()), k=left - len(VICTIMS))
    events += [
        Event("kill", victim, wait=draw.uniform(0, 0.5 if short else 1.5), steps=draw.randrange(10))
        for victim in (*VICTIMS, *more)
    ]
    draw.shuffle(events)
    return events


@dataclass(slots=True)
class Tally:
    """What was done."""

    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    never_reached: list[str] = field(default_factory=list)
    not_done: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Storm:
    """One run and all its processes."""

    def __init__(self, directory: Path, model: Path, seed: int, say: Callable[[str], None]) -> None:
        self.disk = directory / "disk"
        self.run = self.disk / "run"
        self.faults = directory / "faults"
        self.logs = directory / "logs"
        self.tally = Tally()
        for path in (self.disk, self.faults, self.logs):
            path.mkdir(parents=True)
        self._recipe = _write_recipe(directory, model, seed)
        self._draw = random.Random(seed)
        self._say = say
        self._environment = spied_environment(self.faults) | {verifier.SEED_VARIABLE: str(seed)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._open: list[IO[bytes]] = []
        self._steps = STEPS
        self._ended_early = 0
        self._resumed = 0

    def storm(self, events: list[Event], deadline: float = math.inf) -> None:
        """From the first step of the run to its last; events that have not begun by `deadline` (monotonic) are left.

        Raises:
            StormError: it hangs, or cannot be resumed.
        """
        with self._small_disk() as has_disk:
            try:
                self._start("parent", *DRIFTPROOF, "train", self._recipe, "--run.directory", self.run)
                self._until(lambda: self._step() >= 1, "the first step", revive=False)
                for event in events:
                    if event.kind == "full disk" and not has_disk:
                        self.tally.not_done.append("full disk (a tmpfs cannot be mounted here)")
                        continue
                    if time.monotonic() > deadline:
                        name = f"{event.action} {event.what}" if event.kind in ("kill", "place") else event.kind
                        self.tally.not_done.append(f"{name} (no time left)")
                        continue
                    self._happen(event)
                    self._look()
                self._finish()
                self._look()
            finally:
                for process in self._running.values():
                    _end(process)
                self._reap()
                for file in self._open:
                    file.close()

    def collect(self, path: Path) -> None:
        """Copy what the judge needs off the disk that goes away."""
        shutil.copytree(self.run, path, symlinks=True)

    # What happens

    def _happen(self, event: Event) -> None:
        time.sleep(event.wait)
        if event.kind == "kill":
            if event.what in ("learner", "parent"):
                self._until(lambda: self._step() >= self._resumed + event.steps, f"{event.steps} steps")
            self._kill(event.what)
        elif event.kind == "place":
            self._plant(event.what, event.action)
        elif event.kind == "frozen":
            self._freeze(event.what)
        else:
            self._fill_disk()

    def _choose(self, victim: str) -> int:
        pids: list[int] = []

        def found() -> bool:
            pids[:] = self._pids(victim)
            return bool(pids)

        self._until(found, f"a {victim}")
        return self._draw.choice(pids)

    def _kill(self, victim: str) -> None:
        pid = self._choose(victim)
        if processes.kill(pid):
            self.tally.kills[victim] += 1
            self._report(f"killed {victim} ({pid})")

    def _plant(self, place: str, action: faults.Action) -> None:
        fault = faults.plant(self.faults, place, action)
        if "rewind" in place:
            self._kill("learner")
        try:
            self._until(lambda: not fault.exists(), f"{action} {place}")
        except StormError:
            if self._running["parent"].poll() is not None:
                raise
            fault.unlink(missing_ok=True)
            self.tally.never_reached.append(f"{action} {place}")
            self._report(f"never reached: {action} {place}")
            return
        (self.tally.kills if action == "kill" else self.tally.faults)[f"{action} {place}"] += 1
        self._report(f"met: {action} {place}")

    def _freeze(self, victim: str) -> None:
        pid = self._choose(victim)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._report(f"{victim} ({pid}) stands still")
            self._kill("parent")
            self._running["parent"].wait(PATIENCE_SECONDS)
            self._revive()
            self._linger(FROZEN_SECONDS)
            os.kill(pid, signal.SIGCONT)
            self.tally.faults[f"frozen {victim}"] += 1
            self._report(f"{victim} ({pid}) goes on")

    def _fill_disk(self) -> None:
        filling = self.disk / "filling"
        with filling.open("wb") as file, contextlib.suppress(OSError):
            spare = self._draw.choice((0, 2**14, 2**18))
            while (free := shutil.disk_usage(self.disk).free - spare) > 0:
                file.write(bytes(min(free, 2**20)))
                file.flush()
        self.tally.faults["full disk"] += 1
        self._report("the disk is full")
        self._linger(8.0)
        if self._running["parent"].poll() is not None:
            # Whoever resumes on a full disk is told so, and has broken nothing.
            self._revive(count_failures=False)
            self._linger(8.0)
        filling.unlink()
        self._report("the disk has space again")

    def _linger(self, seconds: float) -> None:
        """Until the command has ended, at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running["parent"].wait(seconds)

    def _finish(self) -> None:
        self._kill("learner")
        self._running["parent"].wait(PATIENCE_SECONDS)
        with Ledger(self.run / "ledger.sqlite") as ledger:
            # As far as groups may have been dispatched by now, or are until the run is resumed.
            dispatched = -(-ledger.status().dispatched // ledger.plan.groups_per_step)
            self._steps = max(dispatched, ledger.step + 1 + ledger.plan.max_staleness)
        self._report(f"the storm is over; the run is to end with step {self._steps}")
        self._until(lambda: self._running["parent"].poll() == 0, "the end of the run")

    # Keeping it going

    def _until(self, reached: Callable[[], bool], what: str, revive: bool = True) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            if time.monotonic() > deadline:
                raise StormError(f"waited {PATIENCE_SECONDS:.0f} s for {what}; {self._last_words()}")
            if revive:
                self._revive()
            elif self._running["parent"].poll() is not None:
                raise StormError(f"the run ended before {what}; {self._last_words()}")
            time.sleep(0.02)

    def _revive(self, count_failures: bool = True) -> None:
        """Whatever has ended before its time is started again: the command by a resume."""
        parent = self._running["parent"]
        if parent.poll() not in (None, 0):
            self._ended_early = self._ended_early + 1 if parent.returncode == 2 and count_failures else 0
            if self._ended_early == 4:
                raise StormError(f"the run cannot be resumed: {self._last_words()}")
            self.tally.resumes += 1
            found = sorted((self.run / "checkpoints").glob("step-*"))
            self._resumed = int(found[-1].name.removeprefix("step-")) if found else 0
            self._report(f"ended with code {parent.returncode}; resuming from step {self._resumed}")
            self._start("parent", *DRIFTPROOF, "train", "--resume", self.run, "--run.steps", self._steps)
        if self._ended("inbox"):
            self._start("inbox", *DRIFTPROOF, "inbox", self.run)
        if self._ended("stranger"):
            notes = self.faults / witness.ACKNOWLEDGED
            self._start("stranger", sys.executable, "-m", "benchmarks.chaos.worker", self.run, notes)

    def _ended(self, name: str) -> bool:
        return name not in self._running or self._running[name].poll() is not None

    def _start(self, name: str, *command: object) -> None:
        log = (self.logs / f"{name}.log").open("ab")
        self._open.append(log)
        self._running[name] = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self._environment,
            cwd=ROOT,
            start_new_session=True,
        )

    def _pids(self, victim: str) -> list[int]:
        if victim in ("parent", "inbox", "stranger"):
            return [] if self._ended(victim) else [self._running[victim].pid]
        inbox = None if self._ended("inbox") else self._running["inbox"].pid
        return processes.find(self.run, inbox)[victim]

    def _reap(self) -> None:
        """End what outlived its command."""
        for pids in processes.find(self.run, None).values():
            for pid in pids:
                processes.kill(pid)

    # Looking

    def _step(self) -> int:
        try:
            with Ledger(self.run / "ledger.sqlite") as ledger:
                return ledger.step
        except LedgerError:
            return -1

    def _look(self) -> None:
        for problem in processes.broken(self.run):
            self.tally.problems.append(problem)
            self._report(f"not whole: {problem}")

    def _report(self, line: str) -> None:
        self._say(f"step {self._step():5d}: {line}")

    def _last_words(self) -> str:
        lines = (self.logs / "parent.log").read_text(errors="replace").splitlines()
        return f"the command's last words: {lines[-12:]}"

    @contextlib.contextmanager
    def _small_disk(self) -> Iterator[bool]:
        """Put the run on a disk that can be filled, where that is allowed."""
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(self.disk)]
        try:
            mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            mounted = False
        try:
            yield mounted
        finally:
            if mounted:
                self.collect(self.disk.with_name("run"))
                subprocess.run(["umount", "-l", self.disk], check=False)
                self.run = self.disk.with_name("run")


def spied_environment(directory: Path) -> dict[str, str]:
    """For processes whose faults and notes lie in `directory`."""
    spy = Path(__file__).parent / "spy"
    path = [str(spy), str(ROOT / "src"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {
        faults.VARIABLE: str(directory),
        "PYTHONPATH": os.pathsep.join(path),
    }


def _write_recipe(directory: Path, model: Path, seed: int) -> Path:
    """The quickstart, with our verifier, fewer prompts (so that there are epochs), and nothing that only costs time."""
    draw = random.Random(seed)
    pairs = draw.sample([(a, b) for a in range(100) for b in range(100)], PROMPTS)
    data = directory / "sums.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{a}+{b}=", "answer": str(a + b)}) + "\n" for a, b in pairs))
    recipe = tomllib.loads(QUICKSTART.read_text())
    recipe["task"] = {"name": "jsonl", "path": str(data), "heldout": 2, "verifier": "benchmarks.chaos.verifier:judge"}
    recipe["run"] |= {"steps": STEPS, "seed": seed}
    recipe["model"]["path"] = str(model)
    recipe["rollouts"] |= {"workers": 2, "lease_seconds": 6.0}
    recipe["learner"] |= {"checkpoint_every": 4, "on_collapse": "off"}
    recipe["runtime"] = {"max_restarts": 1000, "stall_seconds": 200.0}
    recipe["verify"] = {"timeout_seconds": 0.5}
    recipe["evaluation"] = {"prompts": 0}
    recipe["tracking"] = {"tensorboard": False}
    path = directory / "storm.toml"
    path.write_text(tomli_w.dumps(recipe))
    return path


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
