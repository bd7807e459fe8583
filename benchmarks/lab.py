"""Every run of the grids in labs/, condensed: what docs/results.md is made of.

make results
python -m benchmarks.lab
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import write_results
from driftproof.lab.experiment import Result
from driftproof.lab.summary import accuracies, collapsed_at
from studies.claims import Study, judge
from studies.page import read_studies


def main() -> None:
    studies = read_studies(Path("labs"))
    verdicts = {str(finding.claim.number): finding.verdict for finding in judge(studies)}
    write_results("lab", verdicts=verdicts, grids={name: grid(study) for name, study in studies.items()})


def grid(study: Study) -> dict[str, Any]:
    return {
        "runs": len(study.results),
        "median_seconds_of_a_run": round(median(result.seconds for result in study.results), 1),
        "columns": "view | objective | age | lr | seed | base | final | best | collapse step",
        "rows": [row(result) for result in study.results],
    }


def row(result: Result) -> str:
    """One line of the file, for a reader's eyes."""
    cell, found = result.cell, accuracies(result)
    ends = [f"{value:.4f}" for value in (found[0], found[-1], max(found))]
    step = collapsed_at(result)
    values = [cell.view, cell.label, cell.staleness, cell.lr, cell.seed, *ends, "" if step is None else step]
    return " | ".join(map(str, values))


if __name__ == "__main__":
    main()
