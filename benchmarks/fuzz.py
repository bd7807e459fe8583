"""Everything that reads what comes from outside, with many nearly right inputs: a value, or the room's own error.

    python -m benchmarks.fuzz                       # 20,000 inputs a parser, about ten minutes
    python -m benchmarks.fuzz --inputs 1000 --only checkpoint

The parsers and their inputs are those of tests/fuzz. Each parser has a process of its own, which may have so much more
memory than it began with, and no more; an input that takes too long, ends in another error or ends the process is a
crash. Target: none.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.harness import ROOT, write_results
from tests.fuzz.brought import brought
from tests.fuzz.parsers import Parser, parsers

BATCH = 250
"""Inputs from one seed."""
MORE_MEMORY = 2 << 30
"""Bytes of address space."""
SLOW_SECONDS = 10.0
"""Computing time that an input may take at most."""
SLOW_SHARE = 10
"""A parser that takes tens of milliseconds an input gets a tenth of the inputs."""


class _Crashes:
    """By error and place, with the first input of each."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def add(self, what: str, value: Any) -> None:
        crash = self.found.setdefault(what, {"count": 0, "input": repr(value)[:400]})
        crash["count"] += 1


def all_parsers() -> list[Parser]:
    return [*parsers(), *brought()]


def fuzz(parser: Parser, inputs: int, first_seed: int) -> dict[str, Any]:
    """So many inputs; how they ended."""
    counts, crashes, messages = {"inputs": 0, "accepted": 0, "refused": 0}, _Crashes(), set()
    # Computing time: others may be at work on the machine, and what only waits meets the time limit of its process.
    slowest = 0.0

    def meet(value: object) -> None:
        nonlocal slowest
        started = time.process_time()
        counts["inputs"] += 1
        try:
            outcome = parser(value)
        except Exception as error:  # noqa: BLE001 (what this is looking for)
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            crashes.add(f"{type(error).__name__} at {where}: {str(error)[:200]}", value)
        else:
            counts["accepted" if outcome.accepted else "refused"] += 1
            messages.add(outcome.message[:60])
        seconds = time.process_time() - started
        slowest = max(slowest, seconds)
        if seconds > SLOW_SECONDS:
            crashes.add(f"took more than {SLOW_SECONDS:g} s", value)

    started, batch = time.perf_counter(), 0
    while counts["inputs"] < inputs:
        _batch(parser, meet, first_seed + batch)
        batch += 1
    return {
        **counts,
        "kinds_of_refusal": len(messages),
        "slowest_seconds": round(slowest, 3),
        "seconds": round(time.perf_counter() - started, 1),
        "crashes": crashes.found,
    }


def _batch(parser: Parser, meet: Any, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(parser.inputs)
    def run(value: Any) -> None:
        meet(value)

    run()


def _one(name: str, inputs: int, first_seed: int) -> None:
    """In a process of its own: fuzz one parser and print what came of it."""
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = next(parser for parser in all_parsers() if parser.name == name)
    # What is imported at the first input counts as what it began with.
    _batch(parser, lambda value: _quietly(parser, value), 10**9)
    begun = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (begun + MORE_MEMORY, begun + MORE_MEMORY))
    print("\n" + json.dumps(fuzz(parser, inputs, first_seed)))


def _quietly(parser: Parser, value: Any) -> None:
    try:
        parser(value)
    except Exception:  # noqa: BLE001 (it is met again, and counted then)
        return


def _in_a_process(parser: Parser, inputs: int, first_seed: int, seconds: float) -> dict[str, Any]:
    inputs = max(BATCH, inputs // (SLOW_SHARE if parser.slow else 1))
    command = [sys.executable, "-m", "benchmarks.fuzz", "--one", parser.name, "--inputs", str(inputs)]
    command += ["--seed", str(first_seed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"inputs": 0, "crashes": {f"not done within {seconds:g} s": {"count": 1}}}
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:]
        return {"inputs": 0, "crashes": {f"the process ended with code {ended.returncode}: {last}": {"count": 1}}}
    result: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    print(parser.name, {name: value for name, value in result.items() if name != "crashes"}, flush=True)
    return result


def _chosen(only: Sequence[str]) -> list[Parser]:
    known = all_parsers()
    if unknown := set(only) - {parser.name for parser in known}:
        raise SystemExit(f"unknown parsers {sorted(unknown)}; valid: {', '.join(parser.name for parser in known)}")
    return [parser for parser in known if not only or parser.name in only]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--inputs", type=int, default=20_000, help="a parser; slow ones have a tenth of them")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", action="append", default=[], metavar="PARSER")
    arguments.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument("--seconds", type=float, default=1800.0, help="at most, for one parser")
    arguments.add_argument("--one", default="", help=argparse.SUPPRESS)
    known = arguments.parse_args()
    if known.one:
        return _one(known.one, known.inputs, known.seed)
    chosen = _chosen(known.only)
    with ThreadPoolExecutor(known.processes) as pool:
        # The slow ones first.
        ordered = sorted(chosen, key=lambda parser: not parser.slow)
        jobs = {
            parser.name: pool.submit(_in_a_process, parser, known.inputs, known.seed, known.seconds)
            for parser in ordered
        }
        found = {parser.name: jobs[parser.name].result() for parser in chosen}
    write_results(
        "fuzz",
        targets={"crashes": 0},
        inputs=sum(result["inputs"] for result in found.values()),
        crashes=sum(crash["count"] for result in found.values() for crash in result["crashes"].values()),
        parsers=found,
    )
    return None


if __name__ == "__main__":
    main()
