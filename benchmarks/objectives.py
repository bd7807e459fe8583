"""Every recipe of recipes/objectives, three seeds: accuracy before and after, and speed.

    python -m benchmarks.objectives --model models/tiny-qwen3

One base model; the seed is that of the run. Each objective at the rate of its recipe, so this shows that it trains the
quickstart, and is no comparison: see docs/results.md for that.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.harness import ROOT, driftproof, spread, summary, write_results

SEEDS = range(3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    model: Path = parser.parse_args().model
    objectives = {}
    with tempfile.TemporaryDirectory() as directory:
        for recipe in sorted((ROOT / "recipes" / "objectives").glob("*.toml")):
            runs = [Path(directory) / f"{recipe.stem}-{seed}" for seed in SEEDS]
            for seed, run in zip(SEEDS, runs, strict=True):
                driftproof("train", recipe, "--model.path", model, "--run.directory", run, "--run.seed", seed)
            results = [summary(run) for run in runs]
            objectives[recipe.stem] = {
                name: spread([result[name] for result in results])
                for name in ("accuracy_before", "accuracy_after", "steps_per_second", "age_mean")
            }
    write_results("objectives", objectives=objectives)


if __name__ == "__main__":
    main()
