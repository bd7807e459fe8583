"""Is memory flat? Resident memory of learner and rollout worker over a quickstart of 1,000 steps.

python -m benchmarks.memory --model models/tiny-qwen3
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.harness import DRIFTPROOF, QUICKSTART, write_results
from driftproof.ledger.ledger import Ledger

STEPS = 1000
EVERY = 50


def resident_mebibytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def process_of(run: Path, name: str) -> int:
    """The process that writes the log of that name; it has no verifier process beside it here."""
    for entry in Path("/proc").iterdir():
        try:
            if (entry / "fd" / "2").readlink() == run / "logs" / f"{name}.log":
                return int(entry.name)
        except OSError:
            continue
    raise SystemExit(f"no process writes {name}.log")


def watch(run: Path, process: subprocess.Popen[bytes]) -> list[dict[str, float]]:
    """Memory at every `EVERY` steps."""
    rows: list[dict[str, float]] = []
    while process.poll() is None and not (run / "ledger.sqlite").exists():
        time.sleep(0.1)
    with Ledger(run / "ledger.sqlite") as ledger:
        while process.poll() is None and len(rows) < STEPS // EVERY:
            step = ledger.step
            if step >= (len(rows) + 1) * EVERY and step < STEPS:
                sizes = {name: resident_mebibytes(process_of(run, name)) for name in ("learner", "worker-0")}
                rows.append({"step": step, **{name: round(size, 1) for name, size in sizes.items()}})
            time.sleep(0.02)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    model = parser.parse_args().model.resolve()
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        command = [*DRIFTPROOF, "train", QUICKSTART, "--model.path", model, "--run.directory", run]
        command += ["--run.steps", STEPS, "--evaluation.prompts", 0]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
        rows = watch(run, process)
        assert process.wait() == 0
    growth = {
        name: round((rows[-1][name] - rows[1][name]) / (rows[-1]["step"] - rows[1]["step"]) * 1000, 2)
        for name in ("learner", "worker-0")
    }
    write_results(
        "memory",
        targets={"memory": "flat over 1,000 steps"},
        growth_in_MiB_per_1000_steps_after_the_first_100=growth,
        resident_MiB=rows,
    )


if __name__ == "__main__":
    main()
