"""What every benchmark needs: a run started as a user starts it, and a results file that says how it came about."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
QUICKSTART = ROOT / "recipes" / "quickstart.toml"
DRIFTPROOF = (sys.executable, "-m", "driftproof.cli")


def write_results(name: str, **content: Any) -> None:
    """`benchmarks/results/NAME.json`, with the command and the environment."""
    import torch
    import transformers

    report = {
        "command": " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]]),
        "environment": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average_at_the_end": round(os.getloadavg()[0], 2),
        },
        **content,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(readable(report) + "\n")
    print(readable(report))


def readable(report: dict[str, Any]) -> str:
    """JSON with each list of numbers on one line."""
    lines = json.dumps(report, indent=2)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", lines)


def driftproof(*arguments: object) -> float:
    """Run a command of ours to its end; its wall time in seconds."""
    started = time.perf_counter()
    subprocess.run([*DRIFTPROOF, *map(str, arguments)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def summary(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return result


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and all values, rounded for reading."""
    return {
        "median": round(statistics.median(values), 5),
        "least": round(min(values), 5),
        "most": round(max(values), 5),
        "all": [round(value, 5) for value in values],
    }
