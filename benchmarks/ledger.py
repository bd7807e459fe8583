"""What the ledger costs a step: lease, commit and take of one 16 x 8 batch, beside the step of a real quickstart.

    python -m benchmarks.ledger --model models/tiny-qwen3

Target: commit and take together under 2% of a quickstart step, measured in the same run of this script.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import QUICKSTART, driftproof, spread, write_results
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Counters, Plan
from driftproof.types import FinishReason, Group

STEPS = 300
GROUPS, RESPONSES, TOKENS = 16, 8, 4


def group(prompt_index: int) -> Group:
    """Eight responses of four tokens."""
    return Group(
        prompt_index=prompt_index,
        prompt_tokens=np.arange(6, dtype=np.int32),
        response_tokens=np.arange(RESPONSES * TOKENS, dtype=np.int32),
        response_lengths=np.full(RESPONSES, TOKENS, dtype=np.int32),
        rewards=np.arange(RESPONSES, dtype=np.float64) % 2,
        finish_reasons=(FinishReason.STOP,) * RESPONSES,
    )


def measure(directory: Path) -> dict[str, list[float]]:
    """Seconds of each part, per step."""
    seconds: dict[str, list[float]] = {"lease": [], "commit": [], "take": [], "finish_step": []}
    plan = Plan(seed=0, prompts=10_000, groups_per_step=GROUPS, max_staleness=0, steps=STEPS)
    with Ledger.create(directory / "ledger.sqlite", plan) as ledger:
        for step in range(1, STEPS + 1):
            start = time.perf_counter()
            leases = ledger.lease("worker", GROUPS, 60)
            leased = time.perf_counter()
            groups = {lease.dispatch: group(lease.prompt_index) for lease in leases}
            written = time.perf_counter()
            ledger.commit("worker", groups, Counters(busy_seconds=1.0))
            committed = time.perf_counter()
            assert ledger.take(GROUPS) is not None
            taken = time.perf_counter()
            ledger.finish_step(step, {"loss": 0.0})
            finished = time.perf_counter()
            for name, value in zip(
                seconds, (leased - start, committed - written, taken - committed, finished - taken), strict=True
            ):
                seconds[name].append(value)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    model = parser.parse_args().model.resolve()
    with tempfile.TemporaryDirectory() as parent:
        seconds = measure(Path(parent))
        run = Path(parent) / "run"
        driftproof(
            "train", QUICKSTART, "--model.path", model, "--run.directory", run, "--run.steps", 120,
            "--evaluation.prompts", 0,
        )  # fmt: skip
        with Ledger(run / "ledger.sqlite") as ledger:
            step = statistics.median(metrics["time/step_seconds"] for metrics in ledger.steps(after=20))
    both = statistics.median(seconds["commit"]) + statistics.median(seconds["take"])
    parts = {name: spread(values) for name, values in seconds.items()}
    for part in parts.values():
        del part["all"]
    write_results(
        "ledger",
        targets={"commit plus take / quickstart step": "under 0.02"},
        share_of_a_step=round(both / step, 5),
        step_seconds=round(step, 5),
        seconds=parts,
        steps=STEPS,
    )


if __name__ == "__main__":
    main()
