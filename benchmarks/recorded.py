"""Training on groups that real models wrote: do the positives gain on the negatives in groups held out?

    python -m benchmarks.recorded --model models/tiny-bytes --data ../shared/data/recorded

Mean token NLL of the positive and of the negative responses of the held-out groups, before and after a run of
`recipes/recorded.toml`: each must tell the two apart better than before.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.harness import ROOT, driftproof, summary, write_results

FILES = ("gsm8k_gpt3.jsonl", "math_qwen.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a byte-level model")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the recorded traces")
    arguments = parser.parse_args()
    runs = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in FILES:
            run = Path(directory) / name
            seconds = driftproof(
                "train", ROOT / "recipes" / "recorded.toml", "--model.path", arguments.model.resolve(),
                "--rollouts.path", arguments.data.resolve() / name, "--run.directory", run,
            )  # fmt: skip
            result = summary(run)
            before, after = result["nll_heldout_before"], result["nll_heldout_after"]
            runs[name] = {
                "steps": result["steps"],
                "seconds": round(seconds, 1),
                "before": before,
                "after": after,
                "fall_of_positives_minus_fall_of_negatives": round(
                    (before["positive_nll"] - after["positive_nll"]) - (before["negative_nll"] - after["negative_nll"]),
                    4,
                ),
            }
    write_results("recorded", targets={"fall of positives minus fall of negatives": "above 0"}, runs=runs)


if __name__ == "__main__":
    main()
