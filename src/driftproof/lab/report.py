"""What a grid leaves beside its runs: `results.parquet`, `report.md` and the pictures.

Guarantees: works on any part of a grid, without running anything; the same runs give the same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from driftproof.config import LabConfig
from driftproof.lab.pictures import draw_pictures
from driftproof.lab.runner import Result
from driftproof.lab.store import write_results
from driftproof.lab.summary import missing_cells, summarize
from driftproof.lab.tables import markdown


def write_report(config: LabConfig, results: Sequence[Result], directory: Path) -> list[Path]:
    """Write all of it; the files."""
    write_results(config, results, directory / "results.parquet")
    pictures = draw_pictures(config, results, directory)
    text = markdown(config, summarize(results), missing_cells(config, results), pictures)
    (directory / "report.md").write_text(text)
    return [directory / name for name in ("results.parquet", "report.md", *pictures.values())]
