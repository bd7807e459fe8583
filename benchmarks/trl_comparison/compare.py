"""driftproof beside TRL's GRPOTrainer: steps/s and seconds to a sampled accuracy of 0.60, five seeds, in turns.

    python -m benchmarks.trl_comparison.compare --model models/tiny-qwen3 --trl-lr LR

Both start from the same base model, on the same training prompts, with 16 prompts x 8 responses a step, fp32, on both
cores. TRL's clock stands still while its accuracy is measured; ours runs, for the accuracies of our run are measured
afterwards, on the snapshots that it left, one a step. TRL has the best learning rate of its sweep (2e-4, 3e-4, 5e-4,
1e-3), ours is the recipe's; both stay constant. Targets: 1.5 times TRL's steps/s, 0.60 in two thirds of its time
(medians).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import QUICKSTART, ROOT, driftproof, spread, write_results

SEEDS = range(5)
TRL_SIDE = ROOT / "benchmarks" / "trl_comparison" / "trl_side.py"
MEASURE_EVERY = 5
WARM_UP_STEPS = 5
TARGET = 0.60


def trl(model: Path, seed: int, lr: float, steps: int, directory: Path) -> dict[str, Any]:
    output = directory / f"trl-{seed}.json"
    command = [sys.executable, TRL_SIDE, "--model", model, "--seed", seed, "--lr", lr, "--steps", steps]
    subprocess.run([*map(str, command), "--output", str(output)], check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def ours(model: Path, seed: int, steps: int, directory: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.trl_comparison.accuracy import exact_accuracy
    from driftproof.ledger.ledger import Ledger
    from driftproof.tasks import arithmetic
    from driftproof.weights.snapshots import list_snapshots

    run = directory / f"driftproof-{seed}"
    driftproof(
        "train", QUICKSTART, "--model.path", model, "--run.directory", run, "--run.seed", seed, "--run.steps", steps,
        "--evaluation.prompts", 0, "--learner.schedule", "constant", "--learner.publish_every", 1,
        "--learner.keep_snapshots", steps + 2,
    )  # fmt: skip
    with Ledger(run / "ledger.sqlite") as ledger:
        seconds = [metrics["time/step_seconds"] for metrics in ledger.steps()]
    tokenizer, heldout = AutoTokenizer.from_pretrained(model), list(arithmetic(digits=2).heldout)
    curve = []
    for snapshot in list_snapshots(run / "snapshots"):
        if snapshot.step % MEASURE_EVERY == 0:
            accuracy = exact_accuracy(AutoModelForCausalLM.from_pretrained(snapshot.path), tokenizer, heldout)
            curve.append((snapshot.step, sum(seconds[: snapshot.step]), accuracy))
            if accuracy >= TARGET:
                break
    return {
        "side": "driftproof",
        "seed": seed,
        "steps_per_second": 1 / statistics.median(seconds[WARM_UP_STEPS:]),
        "seconds_to_0.60": next((at for _, at, accuracy in curve if accuracy >= TARGET), None),
        "curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--trl-lr", type=float, required=True, help="TRL's best of a small sweep")
    parser.add_argument("--steps", type=int, default=250)
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    pairs = []
    with tempfile.TemporaryDirectory() as parent:
        for seed in SEEDS:
            theirs = trl(model, seed, arguments.trl_lr, arguments.steps, Path(parent))
            pairs.append((theirs, ours(model, seed, arguments.steps, Path(parent))))
    reached = [(a["seconds_to_0.60"], b["seconds_to_0.60"]) for a, b in pairs]
    # A side that never got there took longer than its whole run.
    limit = [(a if a is not None else float("inf"), b if b is not None else float("inf")) for a, b in reached]
    medians = [statistics.median(times) for times in zip(*limit, strict=True)]
    speeds = [statistics.median(side["steps_per_second"] for side in sides) for sides in zip(*pairs, strict=True)]
    write_results(
        "trl_comparison.compare",
        targets={"steps/s over TRL's": "at least 1.5", "seconds to 0.60 over TRL's": "at most 0.667"},
        steps_per_second_over_trl=round(speeds[1] / speeds[0], 3),
        seconds_to_060_over_trl=round(medians[1] / medians[0], 3) if medians[0] < float("inf") else None,
        trl={
            "steps_per_second": spread([a["steps_per_second"] for a, _ in pairs]),
            "seconds_to_0.60": [a for a, _ in reached],
        },
        driftproof={
            "steps_per_second": spread([b["steps_per_second"] for _, b in pairs]),
            "seconds_to_0.60": [b for _, b in reached],
        },
        runs=[
            {"seed": side["seed"], "side": side["side"], "curve": [[round(x, 3) for x in row] for row in side["curve"]]}
            for pair in pairs
            for side in pair
        ],
    )


if __name__ == "__main__":
    main()
