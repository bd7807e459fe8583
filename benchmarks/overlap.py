"""Does an asynchronous step take as long as its longer side? Each side alone, both overlapped, both in turns.

    python -m benchmarks.overlap --model models/tiny-qwen3

Rollouts alone: a worker fills the ledger with all groups of a run. Learner alone: a learner trains on those groups.
Asynchronous and synchronous: the quickstart as it is. Seconds per step, the median over the steps of a run after the
first 20; the four take turns, five times. Target: asynchronous at most 1.10 times the longer side.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.harness import QUICKSTART, driftproof, spread, write_results
from driftproof.config import load_config
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import FINISHED
from driftproof.runtime.build import make_learner
from driftproof.runtime.placement.local import LocalPlacement
from driftproof.runtime.placement.protocol import Resources, Role
from driftproof.runtime.preflight import preflight, prepare_directory
from driftproof.weights.models import inspect_model
from driftproof.weights.snapshots import Publisher

STEPS = 120
WARM_UP_STEPS = 20
REPETITIONS = 5


def step_seconds(ledger_path: Path) -> float:
    with Ledger(ledger_path) as ledger:
        return statistics.median(metrics["time/step_seconds"] for metrics in ledger.steps(after=WARM_UP_STEPS))


def both_alone(model: Path, directory: Path) -> tuple[float, float]:
    """Seconds per step of (rollouts, learner), each with the machine to itself."""
    overrides = ["--model.path", str(model), "--run.directory", str(directory), "--run.steps", str(STEPS)]
    overrides += ["--rollouts.max_staleness", str(STEPS), "--evaluation.prompts", "0"]
    config = load_config(QUICKSTART, overrides)
    run = prepare_directory(config, preflight(config))
    Publisher(run.snapshots, model).publish(0, make_learner(config).policy.published())
    placement, one = LocalPlacement(directory=run), Resources(threads=1)
    with Ledger(run.ledger) as ledger:
        worker = placement.start(Role.WORKER, "worker-0", one)
        per_step = ledger.plan.groups_per_step
        times = {}
        while (ready := ledger.status().ready) < STEPS * per_step:
            times.setdefault(ready // per_step, time.perf_counter())
            time.sleep(0.002)
        rollouts = (time.perf_counter() - times[WARM_UP_STEPS]) / (STEPS - WARM_UP_STEPS)
        worker.kill()
        learner = placement.start(Role.LEARNER, "learner", one)
        while learner.alive:
            learner.wait(1.0)
        assert ledger.state() == FINISHED, run.log("learner").read_text()
    return rollouts, step_seconds(run.ledger)


def overlapped(model: Path, directory: Path, mode: str) -> float:
    driftproof(
        "train", QUICKSTART, "--model.path", model, "--run.directory", directory, "--run.steps", STEPS,
        "--evaluation.prompts", 0, "--runtime.mode", mode,
    )  # fmt: skip
    return step_seconds(directory / "ledger.sqlite")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    model = parser.parse_args().model.resolve()
    inspect_model(model)
    seconds: dict[str, list[float]] = {"rollouts": [], "learner": [], "async": [], "sync": []}
    with tempfile.TemporaryDirectory() as parent:
        for repetition in range(REPETITIONS):
            place = Path(parent)
            rollouts, learner = both_alone(model, place / f"alone-{repetition}")
            seconds["rollouts"].append(rollouts)
            seconds["learner"].append(learner)
            seconds["async"].append(overlapped(model, place / f"async-{repetition}", "async"))
            seconds["sync"].append(overlapped(model, place / f"sync-{repetition}", "sync"))
    ratios = [
        together / max(rollouts, learner)
        for together, rollouts, learner in zip(seconds["async"], seconds["rollouts"], seconds["learner"], strict=True)
    ]
    write_results(
        "overlap",
        targets={"asynchronous step / longer side alone": "at most 1.10"},
        async_over_longer_side=spread(ratios),
        sync_over_async=spread([a / b for a, b in zip(seconds["sync"], seconds["async"], strict=True)]),
        seconds_per_step={name: spread(values) for name, values in seconds.items()},
        repetitions=REPETITIONS,
        steps=STEPS,
    )


if __name__ == "__main__":
    main()
