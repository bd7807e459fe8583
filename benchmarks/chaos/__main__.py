"""A seeded storm on the quickstart: nothing is lost, nothing is trained twice, and what is repeatable stays so.

    python -m benchmarks.chaos --kills 100 --seed 0 --output chaos.json
    python -m benchmarks.chaos --short

Target: `lost` and `trained_twice` are 0, `bit_identical` is true, after at least as many kills as asked for. Exit code
1 otherwise. The full disk needs the right to mount a tmpfs (root); where it is missing, `not_done` says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.chaos import verifier
from benchmarks.chaos.judge import gather, judge
from benchmarks.chaos.repeat import bit_identical
from benchmarks.chaos.storm import Storm, StormError, plan
from benchmarks.harness import ROOT, readable, write_results

COUNTS = ("kills", "faults", "groups_committed", "trained_once", "trained_twice", "lost", "resumes", "bit_identical")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, help="at least so many (default: 100, short: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="about a minute, for CI")
    parser.add_argument("--minutes", type=float, default=60.0, help="what has not begun by then is left (not_done)")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "tiny-qwen3", help="a tiny model's directory")
    parser.add_argument("--output", type=Path, help="where to write; benchmarks/results/chaos.json where not given")
    known = parser.parse_args()
    kills = known.kills or (10 if known.short else 100)
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    result = chaos(directory, known.model.resolve(), kills, known.seed, known.short, known.minutes)
    if known.output or known.short:
        (known.output or directory / "chaos.json").write_text(readable(result) + "\n")
    else:
        write_results("chaos", **result)
    print("\n".join(f"{name:20} {result[name]}" for name in COUNTS))
    good = passed(result, kills)
    if good:
        shutil.rmtree(directory)
    else:
        print(f"FAILED ({kills} kills were asked for); see {directory}")
        print(json.dumps({name: result[name] for name in ("problems", "not_done", "never_reached")}, indent=2))
    return 0 if good else 1


def passed(result: dict[str, Any], kills: int) -> bool:
    return (
        result["lost"] == result["trained_twice"] == 0
        and result["bit_identical"] is True
        and result["kills"] >= kills
        and result["trained_once"] == result["groups_committed"] > 0
        and not result["problems"]
    )


def chaos(directory: Path, model: Path, kills: int, seed: int, short: bool, minutes: float = 60.0) -> dict[str, Any]:
    """The storm and, beside it, the deterministic runs; the keys of `COUNTS` and more."""
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {line}", flush=True)

    storm = Storm(directory / "storm", model, seed, say)
    with ThreadPoolExecutor(1) as beside:
        repeated, steps = (1, 12) if short else (6, 60)
        identical = beside.submit(bit_identical, directory / "repeat", model, seed, repeated, steps, say)
        try:
            storm.storm(plan(seed, kills, short), started + 60 * minutes)
        except StormError as error:
            storm.tally.problems.append(str(error))
        try:
            same = identical.result()
        except StormError as error:
            storm.tally.problems.append(str(error))
            same = False
    judgement = judge(gather(storm.run, storm.faults))
    tally = storm.tally
    log = storm.faults / verifier.LOG
    found = tally.faults + Counter(log.read_text().splitlines() if log.exists() else ())
    return {
        "kills": tally.kills.total(),
        "faults": found.total(),
        "groups_committed": judgement.groups_committed,
        "trained_once": judgement.trained_once,
        "trained_twice": len(judgement.trained_twice),
        "lost": len(judgement.lost),
        "resumes": tally.resumes,
        "bit_identical": same,
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "kills_by_victim": dict(sorted(tally.kills.items())),
        "faults_by_kind": dict(sorted(found.items())),
        "kills_of_the_deterministic_run": repeated,
        "never_reached": tally.never_reached,
        "not_done": tally.not_done,
        "problems": tally.problems + judgement.problems,
    }


if __name__ == "__main__":
    sys.exit(main())
