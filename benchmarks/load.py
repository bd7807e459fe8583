"""Load: one learner and up to 64 simulated workers through ledger and inbox; what is held, and where it saturates.

    python -m benchmarks.load --model models/tiny-qwen3

A simulated worker leases one group, writes it at once and commits it; each has a connection of its own to a real
ledger. Through the inbox it is a client of `driftproof inbox` over HTTP on the loopback. The simulated learner takes
and finishes steps of 16 groups as fast as it can, or at a fixed pace. A group says in its tokens which dispatch it is
of, so that the ledger's records and what the learner was given show what was lost, mixed up or trained twice: target 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import DRIFTPROOF, QUICKSTART, ROOT, write_results
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Counters, Plan
from driftproof.types import FinishReason, Group

WORKERS = (1, 4, 16, 64)
TOKENS = (64, 1024)
"""Of each response."""
RESPONSES = 8
GROUPS_PER_STEP = 16
MAX_STALENESS = 7
"""Admits 128 groups at a time: two for each of 64 workers."""
PACE = 10.0
"""Steps per second of the learner with a fixed pace, about those of a quickstart on two cores."""
PROCESSES = 4
"""That share the simulated workers."""
POLL_SECONDS = 0.001
"""As the built-in workers and the learner wait."""
START_SECONDS = 4.0
"""From the start of the processes to the first lease."""
DIGITS, BASE = 6, 90
"""A dispatch number in the first tokens of a group."""


@dataclass(kw_only=True)
class Work:
    """What some simulated workers did."""

    lease_seconds: list[float] = field(default_factory=list)
    """Of the leases that gave a group."""
    commit_seconds: list[float] = field(default_factory=list)
    leased: list[int] = field(default_factory=list)
    """Dispatches."""
    accepted: int = 0
    empty: int = 0
    """Leases that gave none."""
    busy: int = 0
    """Times that SQLite gave up waiting for its lock."""
    cpu_seconds: float = 0.0

    def add(self, other: Work) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the simulated learner was given."""

    steps: int
    dispatches: list[int]
    take_seconds: list[float]
    """Of the takes that gave a batch."""
    cpu_seconds: float


def content(tokens: int) -> Group:
    """A group of eight responses of so many tokens."""
    return Group(
        prompt_index=0,
        prompt_tokens=np.arange(16, dtype=np.int32),
        response_tokens=np.arange(RESPONSES * tokens, dtype=np.int32) % BASE,
        response_lengths=np.full(RESPONSES, tokens, dtype=np.int32),
        rewards=np.arange(RESPONSES, dtype=np.float64) % 2,
        finish_reasons=(FinishReason.LENGTH,) * RESPONSES,
    )


def tag(dispatch: int) -> list[int]:
    """The first tokens of the group of a dispatch."""
    return [dispatch // BASE**place % BASE for place in range(DIGITS)]


def untag(tokens: Sequence[int]) -> int:
    return sum(int(token) * BASE**place for place, token in enumerate(tokens[:DIGITS]))


def write(template: Group, dispatch: int, prompt_index: int) -> Group:
    tokens = template.response_tokens.copy()
    tokens[:DIGITS] = tag(dispatch)
    return replace(template, prompt_index=prompt_index, response_tokens=tokens)


def work(path: Path, names: Sequence[str], tokens: int, start: float, stop: float) -> Work:
    """Some workers, a thread each, from `start` to `stop` (monotonic seconds)."""
    total, cpu = [Work() for _ in names], time.process_time()
    threads = [
        threading.Thread(target=_work, args=(path, name, content(tokens), start, stop, mine))
        for name, mine in zip(names, total, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    merged = Work(cpu_seconds=time.process_time() - cpu)
    for part in total:
        merged.add(part)
    return merged


def _work(path: Path, name: str, template: Group, start: float, stop: float, done: Work) -> None:
    counters = Counters(busy_seconds=1.0)
    with Ledger(path) as ledger:
        _sleep_until(start)
        while (begun := time.monotonic()) < stop:
            try:
                leases = ledger.lease(name, 1, 600)
                leased = time.monotonic()
                if not leases:
                    done.empty += 1
                    time.sleep(POLL_SECONDS)
                    continue
                lease = leases[0]
                done.leased.append(lease.dispatch)
                group = write(template, lease.dispatch, lease.prompt_index)
                written = time.monotonic()
                done.accepted += ledger.commit(name, {lease.dispatch: group}, counters)
            except sqlite3.OperationalError:
                done.busy += 1
                continue
            done.lease_seconds.append(leased - begun)
            done.commit_seconds.append(time.monotonic() - written)


def learn(path: Path, pace: float, start: float, stop: float) -> Trained:
    """Take and finish steps until `stop`, at most `pace` a second (0: no limit)."""
    dispatches: list[int] = []
    seconds: list[float] = []
    with Ledger(path) as ledger:
        _sleep_until(start)
        cpu = time.process_time()
        while (begun := time.monotonic()) < stop:
            # As the learner waits.
            batch = ledger.take(GROUPS_PER_STEP) if ledger.state() == "running" else None
            if batch is None:
                time.sleep(POLL_SECONDS)
                continue
            seconds.append(time.monotonic() - begun)
            dispatches += [untag(group.response_tokens.tolist()) for group in batch.groups]
            ledger.finish_step(batch.step, {"loss": 0.0})
            if pace:
                _sleep_until(start + len(seconds) / pace)
        used = time.process_time() - cpu
    return Trained(steps=len(seconds), dispatches=dispatches, take_seconds=seconds, cpu_seconds=used)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def through_the_ledger(directory: Path, workers: int, tokens: int, pace: float, seconds: float) -> dict[str, Any]:
    """One case: workers with the ledger itself."""
    path = directory / "ledger.sqlite"
    plan = Plan(seed=0, prompts=10_000, groups_per_step=GROUPS_PER_STEP, max_staleness=MAX_STALENESS, steps=10**7)
    Ledger.create(path, plan).close()
    names = [f"worker-{i}" for i in range(workers)]
    crews = [names[i::PROCESSES] for i in range(min(PROCESSES, workers))]
    with _processes(len(crews) + 1) as pool:
        start = time.monotonic() + START_SECONDS
        learner = pool.submit(learn, path, pace, start, start + seconds)
        parts: list[Future[Work]] = [pool.submit(work, path, crew, tokens, start, start + seconds) for crew in crews]
        done = Work()
        for part in parts:
            done.add(part.result())
        trained = learner.result()
    return {
        "through": "ledger", "workers": workers, "tokens": tokens, "pace": pace or None,
        **figures(done, trained, seconds), **check(path, done, trained),
    }  # fmt: skip


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def figures(done: Work, trained: Trained, seconds: float) -> dict[str, Any]:
    """Rates, and times as a worker, or the learner, sees them."""
    return {
        "groups_per_second": round(done.accepted / seconds, 1),
        "lease_ms": _percentiles(done.lease_seconds),
        "commit_ms": _percentiles(done.commit_seconds),
        "take_ms": _percentiles(trained.take_seconds),
        "steps_per_second": round(trained.steps / seconds, 2),
        "empty_leases_per_second": round(done.empty / seconds, 1),
        "cores_of_workers": round(done.cpu_seconds / seconds, 2),
        "cores_of_learner": round(trained.cpu_seconds / seconds, 2),
        "sqlite_busy": done.busy,
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    p50, p99, most = np.percentile(np.array(seconds) * 1000, [50, 99, 100])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "most": round(float(most), 1)}


def check(path: Path, done: Work, trained: Trained) -> dict[str, int]:
    """What went wrong, from the ledger's own records and what the learner was given."""
    with Ledger(path) as ledger:
        steps: Counter[int] = Counter()
        committed, mixed_up, recorded_as_trained = 0, 0, set()
        for record in ledger.records():
            committed += 1
            mixed_up += untag(record.group.response_tokens.tolist()) != record.dispatch
            if record.trained_step is not None:
                steps[record.trained_step] += 1
                recorded_as_trained.add(record.dispatch)
        status = ledger.status()
    return {
        "groups_lost": done.accepted - committed,
        "groups_mixed_up": mixed_up,
        "leased_twice": len(done.leased) - len(set(done.leased)),
        "left_leased": status.leased,
        "trained_twice": len(trained.dispatches) - len(set(trained.dispatches)),
        "trained_but_not_recorded": len(set(trained.dispatches) ^ recorded_as_trained),
        "steps_of_another_size": sum(count != GROUPS_PER_STEP for count in steps.values()),
    }


# Through the inbox.


def make_run(directory: Path, model: Path, tokens: int) -> Path:
    """A run directory as `driftproof train` makes it, for responses of so many tokens."""
    from driftproof.config import load_config
    from driftproof.runtime.preflight import preflight, prepare_directory

    run = directory / "run"
    overrides = {
        "model.path": model,
        "run.directory": run,
        "run.steps": 10**7,
        "sampling.max_tokens": tokens,
        "rollouts.max_staleness": MAX_STALENESS,
        "learner.groups_per_step": GROUPS_PER_STEP,
    }
    config = load_config(QUICKSTART, [f"--{name}={value}" for name, value in overrides.items()])
    prepare_directory(config, preflight(config))
    return run


def ask(run: Path, names: Sequence[str], tokens: int, start: float, stop: float) -> Work:
    """Some clients of an inbox at once."""
    return asyncio.run(_ask(run, names, tokens, start, stop))


async def _ask(run: Path, names: Sequence[str], tokens: int, start: float, stop: float) -> Work:
    import httpx2

    url = json.loads((run / "inbox.json").read_text())["url"]
    headers = {"Authorization": f"Bearer {(run / 'inbox.token').read_text().strip()}"}
    done, cpu = Work(), time.process_time()
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits, trust_env=False) as client:
        await asyncio.sleep(start - time.monotonic())
        await asyncio.gather(*(_client(client, name, tokens, stop, done) for name in names))
    done.cpu_seconds = time.process_time() - cpu
    return done


async def _client(client: Any, name: str, tokens: int, stop: float, done: Work) -> None:
    template = content(tokens).response_tokens[:tokens].tolist()
    while (begun := time.monotonic()) < stop:
        reply = await client.get("/prompts", params={"n": 1, "worker": name})
        leased = time.monotonic()
        if reply.status_code != 200:
            done.busy += 1
            continue
        prompts = reply.json()["prompts"]
        if not prompts:
            done.empty += 1
            # Not the second that it is told to wait, so that the inbox has all it can do.
            await asyncio.sleep(0.02)
            continue
        dispatch = prompts[0]["dispatch"]
        done.leased.append(dispatch)
        responses = [
            {"tokens": tag(dispatch) + template[DIGITS:], "finish_reason": "length", "reward": float(position % 2)}
            for position in range(RESPONSES)
        ]
        body = {"groups": [{"dispatch": dispatch, "worker": name, "responses": responses}]}
        written = time.monotonic()
        reply = await client.post("/groups", json=body)
        if reply.status_code != 200:
            done.busy += 1
            continue
        done.accepted += sum(group["outcome"] == "accepted" for group in reply.json()["groups"])
        done.lease_seconds.append(leased - begun)
        done.commit_seconds.append(time.monotonic() - written)


def through_the_inbox(
    directory: Path, model: Path, workers: int, tokens: int, pace: float, seconds: float
) -> dict[str, Any]:
    """One case: workers as clients of `driftproof inbox`."""
    run = make_run(directory, model, tokens)
    server = subprocess.Popen(
        list(map(str, [*DRIFTPROOF, "inbox", run])), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (run / "inbox.json").exists():
            if server.poll() is not None:
                raise SystemExit(f"the inbox ended with code {server.returncode}")
            time.sleep(0.05)
        path = run / "ledger.sqlite"
        with _processes(2) as pool:
            start = time.monotonic() + START_SECONDS
            learner = pool.submit(learn, path, pace, start, start + seconds)
            asking = pool.submit(ask, run, [f"client-{i}" for i in range(workers)], tokens, start, start + seconds)
            _sleep_until(start)
            before = _cpu_seconds(server.pid)
            done, trained = asking.result(), learner.result()
            used = _cpu_seconds(server.pid) - before
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    return {
        "through": "inbox", "workers": workers, "tokens": tokens, "pace": pace or None,
        **figures(done, trained, seconds), "cores_of_inbox": round(used / seconds, 2), **check(path, done, trained),
    }  # fmt: skip


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def saturation(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each way and size: the number of workers from which more of them bring less than a tenth more."""
    found: dict[str, Any] = {}
    for case in cases:
        if case["pace"] is None:
            found.setdefault(f"{case['through']}, {RESPONSES} x {case['tokens']} tokens", []).append(case)
    return {name: _saturation(sorted(rates, key=lambda case: int(case["workers"]))) for name, rates in found.items()}


def _saturation(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    best = max(case["groups_per_second"] for case in cases)
    enough = next(case for case in cases if case["groups_per_second"] >= 0.9 * best)
    return {"most_groups_per_second": best, "nine_tenths_of_it_with_workers": enough["workers"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=25.0, help="of each case")
    arguments = parser.parse_args()
    model, seconds = arguments.model.resolve(), arguments.seconds
    shapes = [(workers, tokens, 0.0) for tokens in TOKENS for workers in WORKERS]
    shapes += [(WORKERS[-1], tokens, PACE) for tokens in TOKENS]
    cases = []
    for through in ("ledger", "inbox"):
        for workers, tokens, pace in shapes:
            with tempfile.TemporaryDirectory() as parent:
                directory = Path(parent)
                if through == "ledger":
                    case = through_the_ledger(directory, workers, tokens, pace, seconds)
                else:
                    case = through_the_inbox(directory, model, workers, tokens, pace, seconds)
            cases.append(case)
            print(_line(case), flush=True)
    bad = ("groups_lost", "groups_mixed_up", "leased_twice", "trained_twice", "trained_but_not_recorded", "sqlite_busy")
    write_results(
        "load",
        targets=dict.fromkeys(bad, 0),
        totals={name: sum(case[name] for case in cases) for name in bad},
        groups=f"{RESPONSES} responses; {GROUPS_PER_STEP} groups a step, {MAX_STALENESS} steps ahead",
        seconds_of_each=seconds,
        saturation=saturation(cases),
        cases=cases,
    )
    print("\n".join(map(_line, cases)))


def _line(case: dict[str, Any]) -> str:
    times = "  ".join(
        f"{name} p50 {case[f'{name}_ms']['p50']:.1f} p99 {case[f'{name}_ms']['p99']:.1f}"
        for name in ("lease", "commit", "take")
        if case[f"{name}_ms"]
    )
    return (
        f"{case['through']:7} {case['workers']:3} workers  {case['tokens']:5} tokens  "
        f"pace {case['pace'] or 'free':>5}  "
        f"{case['groups_per_second']:8.1f} groups/s  {times} ms  lost {case['groups_lost']}  "
        f"twice {case['trained_twice']}  busy {case['sqlite_busy']}"
    )


if __name__ == "__main__":
    main()
