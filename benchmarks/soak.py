"""A soak: a quickstart that does not end, watched from outside; does anything grow that should not?

    python -m benchmarks.soak --model models/tiny-qwen3 --minutes 45

Every ten seconds: memory, open files and threads of every process of the run, the sizes of the ledger, its
write-ahead log and the run directory, the step. After the time the run is stopped by SIGINT, and each figure is judged:
the first quarter after the warm-up against the last, and the slope over the steps. Other work on the machine shows in
the time of a step and in the load average beside it, not in the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness import DRIFTPROOF, QUICKSTART, ROOT, write_results
from driftproof.errors import LedgerError
from driftproof.ledger.ledger import Ledger

EVERY_SECONDS = 10.0
WARM_UP_SECONDS = 120.0
"""At most a fifth of the soak."""
START_SECONDS = 300.0
"""How long the first step may take to come."""
MIB = 1 << 20
PROC = Path("/proc")

MEMORY_GROWTH = 0.02
"""Of a process' memory in the first quarter."""
MEMORY_SLOPE = 0.5
"""MiB per 1,000 steps."""
STEP_TIME_GROWTH = 0.1
SIZE_GROWTH = 0.05
"""Of the bytes that a group, or a step, adds."""
WAL_LIMIT = 16.0
"""MiB; SQLite tidies it up at about 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process at one moment."""

    pid: int
    rss: int
    """Bytes in memory."""
    pss: int
    """The same, with shared pages divided among those who share them."""
    anonymous: int
    """The part that is backed by no file: what a leak adds to."""
    files: int
    """Open file descriptors."""
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The run at one moment."""

    seconds: float
    """Since the first step."""
    step: int
    groups: int
    """Dispatched so far."""
    ledger: int
    """Bytes, as are the next two."""
    wal: int
    directory: int
    load: float
    """Processes that were running or waited to, on average of the last minute."""
    processes: dict[str, Process]


def sample(parent: int, run: Path, ledger: Ledger, started: float) -> Sample:
    """The run whose first process is `parent`, now."""
    status = ledger.status()
    return Sample(
        seconds=time.monotonic() - started,
        step=status.step,
        groups=status.dispatched,
        ledger=_size(run / "ledger.sqlite"),
        wal=_size(run / "ledger.sqlite-wal"),
        directory=sum(_size(Path(root) / name) for root, _, names in os.walk(run) for name in names),
        load=os.getloadavg()[0],
        processes=dict(_processes(parent)),
    )


def _processes(parent: int) -> Iterator[tuple[str, Process]]:
    """Every process below `parent`, and that one, by its part in the run."""
    for pid in _family(parent):
        # A process may end while it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield _part(pid, parent), _process(pid)


def _family(parent: int) -> list[int]:
    parents = {}
    for directory in PROC.iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parents[int(directory.name)] = _parent(int(directory.name))
    family = [parent]
    for pid in family:
        family += [child for child, its_parent in parents.items() if its_parent == pid]
    return family


def _parent(pid: int) -> int:
    # The command, in brackets, may hold anything.
    return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def _part(pid: int, parent: int) -> str:
    """`parent`, `learner`, `worker-0`, `verifier of worker-0`; a helper of Python's by its module."""
    if pid == parent:
        return "parent"
    command = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    if "driftproof.verify.child" in command:
        return f"verifier of {_part(_parent(pid), parent)}"
    # Learner and workers are forked from one server and have its command; each writes to a log of its own.
    output = (PROC / str(pid) / "fd" / "1").readlink()
    if output.suffix == ".log":
        return output.stem
    return "resource tracker" if "resource_tracker" in command else "fork server"


def _process(pid: int) -> Process:
    directory = PROC / str(pid)
    memory = _kilobytes(directory / "smaps_rollup")
    return Process(
        pid=pid,
        rss=memory["Rss"],
        pss=memory["Pss"],
        anonymous=memory["Anonymous"],
        files=len(list((directory / "fd").iterdir())),
        threads=len(list((directory / "task").iterdir())),
    )


def _kilobytes(file: Path) -> dict[str, int]:
    """Bytes by name."""
    fields = (line.split() for line in file.read_text().splitlines()[1:])
    return {name.removesuffix(":"): int(amount) << 10 for name, amount, *_ in fields}


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # pruned while we looked
        return 0


def soak(model: Path, run: Path, minutes: float, settings: Sequence[str]) -> tuple[list[Sample], dict[str, Any]]:
    """Run for so long; the samples, and how the run ended."""
    command = [
        *DRIFTPROOF, "train", QUICKSTART, "--model.path", model, "--run.directory", run,
        "--run.steps", 10_000_000, "--evaluation.prompts", 0, *settings,
    ]  # fmt: skip
    with (run.parent / "output.txt").open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=output, stderr=output)
    try:
        samples = list(_watch(process, run, minutes * 60))
        family = _family(process.pid)
        stopping = time.monotonic()
        process.send_signal(signal.SIGINT)
        code = process.wait(180)
        ending = {
            "exit_code": code,
            "seconds_to_stop": round(time.monotonic() - stopping, 1),
            "processes_left_behind": _left_behind(family),
            "last_line": (run.parent / "output.txt").read_text().strip().splitlines()[-1].replace(str(run), "RUN"),
        }
    finally:
        process.kill()
        process.wait()
    return samples, ending


def _left_behind(family: Sequence[int]) -> int:
    """Of the processes of a run that has ended; Python's own helpers end a moment after it."""
    deadline = time.monotonic() + 5
    while (left := sum((PROC / str(pid)).exists() for pid in family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _watch(process: subprocess.Popen[bytes], run: Path, seconds: float) -> Iterator[Sample]:
    with _first_step(process, run) as ledger:
        started = time.monotonic()
        while (now := time.monotonic() - started) < seconds:
            if process.poll() is not None:
                output = (run.parent / "output.txt").read_text()
                raise SystemExit(f"the run ended after {now:.0f} s with code {process.returncode}:\n{output}")
            yield sample(process.pid, run, ledger, started)
            time.sleep(max(0.0, started + now + EVERY_SECONDS - time.monotonic()))


def _first_step(process: subprocess.Popen[bytes], run: Path) -> Ledger:
    """The run's ledger, once a step is done."""
    deadline = time.monotonic() + START_SECONDS
    ledger: Ledger | None = None
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(LedgerError):
            ledger = ledger or Ledger(run / "ledger.sqlite")
        if ledger is not None and ledger.step:
            return ledger
        time.sleep(0.1)
    raise SystemExit(f"no step after {START_SECONDS:.0f} s:\n{(run.parent / 'output.txt').read_text()}")


def slope(steps: Sequence[float], values: Sequence[float]) -> float:
    """By how much `values` grow in 1,000 steps, by least squares."""
    return float(np.polyfit(np.asarray(steps, float) / 1000, values, 1)[0])


def quarters(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The first and the last quarter of what follows the warm-up."""
    warm_up = min(WARM_UP_SECONDS, samples[-1].seconds / 5)
    warm = [sample for sample in samples if sample.seconds >= warm_up]
    count = max(2, len(warm) // 4)
    return warm[:count], warm[-count:]


def judge(samples: Sequence[Sample], step_seconds: Sequence[float]) -> dict[str, Any]:
    """Every figure early and late, with its limit and whether it keeps to it. `step_seconds[i]` is of step i + 1."""
    early, late = quarters(samples)
    warm = [sample for sample in samples if sample.seconds >= early[0].seconds]
    return {
        "processes": {part: _judge_process(part, warm, early, late) for part in _steady_parts(samples)},
        "ledger_bytes_per_group": _judge_growth(early, late, lambda s: s.ledger, lambda s: s.groups),
        "directory_bytes_per_step": _judge_growth(early, late, lambda s: s.directory, lambda s: s.step),
        "wal_mib": _judged(
            max(s.wal for s in early) / MIB,
            largest := max(s.wal for s in late) / MIB,
            largest <= WAL_LIMIT,
            limit=f"at most {WAL_LIMIT:g} MiB",
        ),
        "step_seconds": _judge_step_time(early, late, step_seconds),
    }


def _steady_parts(samples: Sequence[Sample]) -> list[str]:
    """The parts that were there from the first quarter to the last."""
    early, late = quarters(samples)
    return [part for part in early[0].processes if all(part in sample.processes for sample in (*early, *late))]


def _judge_process(
    part: str, warm: Sequence[Sample], early: Sequence[Sample], late: Sequence[Sample]
) -> dict[str, dict[str, Any]]:
    there = [sample for sample in warm if part in sample.processes]
    steps = [sample.step for sample in there]

    def figures(field: str, scale: float) -> tuple[float, float, float]:
        def value(sample: Sample) -> float:
            return float(getattr(sample.processes[part], field)) / scale

        return median(map(value, early)), median(map(value, late)), slope(steps, list(map(value, there)))

    judged = {}
    for field in ("rss", "pss", "anonymous"):
        first, last, per_1000 = figures(field, MIB)
        flat = last <= first * (1 + MEMORY_GROWTH) and per_1000 <= MEMORY_SLOPE
        limit = f"at most {MEMORY_GROWTH:.0%} more, and {MEMORY_SLOPE} MiB per 1,000 steps"
        judged[f"{field}_mib"] = _judged(first, last, flat, limit=limit, per_1000_steps=round(per_1000, 3))
    for field in ("files", "threads"):
        first, last, per_1000 = figures(field, 1)
        judged[field] = _judged(first, last, last <= first, limit="none more", per_1000_steps=round(per_1000, 3))
    return judged


def _judge_growth(
    early: Sequence[Sample],
    late: Sequence[Sample],
    size: Callable[[Sample], int],
    count: Callable[[Sample], int],
) -> dict[str, Any]:
    """Bytes that each group or step adds, early and late."""
    first, last = (
        (size(part[-1]) - size(part[0])) / max(count(part[-1]) - count(part[0]), 1) for part in (early, late)
    )
    return _judged(first, last, last <= first * (1 + SIZE_GROWTH), limit=f"at most {SIZE_GROWTH:.0%} more")


def _judge_step_time(early: Sequence[Sample], late: Sequence[Sample], step_seconds: Sequence[float]) -> dict[str, Any]:
    first, last = (median(step_seconds[part[0].step : part[-1].step]) for part in (early, late))
    return _judged(
        first,
        last,
        last <= first * (1 + STEP_TIME_GROWTH),
        limit=f"at most {STEP_TIME_GROWTH:.0%} more",
        load_average=[round(median(s.load for s in part), 2) for part in (early, late)],
    )


def _judged(early: float, late: float, flat: bool, *, limit: str, **more: Any) -> dict[str, Any]:
    return {"early": round(early, 5), "late": round(late, 5), **more, "limit": limit, "flat": flat}


def table(verdicts: dict[str, Any]) -> str:
    """The verdicts for people."""
    lines = [f"{'':46}{'early':>10}{'late':>10}{'/1000 steps':>13}"]
    for name, found in verdicts.items():
        rows = (
            {f"{part} {field}": row for part, fields in found.items() for field, row in fields.items()}
            if name == "processes"
            else {name: found}
        )
        lines += [
            f"{title:46}{row['early']:10.4g}{row['late']:10.4g}{row.get('per_1000_steps', ''):>13}"
            f"  {'flat' if row['flat'] else 'NOT FLAT'} ({row['limit']})"
            for title, row in rows.items()
        ]
    return "\n".join(lines)


def _not_flat(verdicts: Any, name: str = "") -> list[str]:
    if "flat" in verdicts:
        return [] if verdicts["flat"] else [name]
    return [bad for key, value in verdicts.items() for bad in _not_flat(value, f"{name} {key}".strip())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=45.0)
    arguments, settings = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        samples, ending = soak(arguments.model.resolve(), run, arguments.minutes, settings)
        with Ledger(run / "ledger.sqlite") as ledger:
            step_seconds = [metrics["time/step_seconds"] for metrics in ledger.steps()]
            events = {kind: {"count": count, "last": last} for kind, (count, last) in ledger.events().items()}
    verdicts = judge(samples, step_seconds)
    first, last = samples[0], samples[-1]
    write_results(
        "soak",
        minutes=round((last.seconds - first.seconds) / 60, 1),
        steps=last.step - first.step,
        groups=last.groups - first.groups,
        steps_per_second=round((last.step - first.step) / (last.seconds - first.seconds), 3),
        not_flat=_not_flat(verdicts),
        verdicts=verdicts,
        processes_restarted=_restarted(samples),
        ended=ending,
        events=events,
        samples=_columns(samples),
    )
    print(table(verdicts))


def _restarted(samples: Sequence[Sample]) -> dict[str, int]:
    pids: dict[str, set[int]] = {}
    for moment in samples:
        for part, process in moment.processes.items():
            pids.setdefault(part, set()).add(process.pid)
    return {part: len(found) - 1 for part, found in pids.items() if len(found) > 1}


def _columns(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """What a picture of the soak needs."""
    columns: dict[str, list[float]] = {
        "seconds": [round(sample.seconds) for sample in samples],
        "step": [sample.step for sample in samples],
        "load": [round(sample.load, 2) for sample in samples],
    }
    for part in _steady_parts(samples):
        there = [sample.processes.get(part) for sample in samples]
        columns[f"{part} anonymous_mib"] = [round(p.anonymous / MIB, 2) if p else 0.0 for p in there]
    return columns


if __name__ == "__main__":
    main()
