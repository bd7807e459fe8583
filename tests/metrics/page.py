"""The tables of docs/runs.md, made of the metrics' names: `python -m tests.metrics.page` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from driftproof.metrics.names import ROWS, Section

PAGE = Path(__file__).parents[2] / "docs" / "runs.md"
BLOCK = re.compile(r"(<!-- metrics: (?P<section>\w+) -->\n)(?P<text>.*?)(<!-- metrics end -->)", re.DOTALL)
NOTES: dict[Section, str] = {"health": "what to look for", "drift": "what to look for", "objective": "objectives"}


def filled(text: str) -> str:
    """A page with its tables written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(found['section'])}\n\n{found[4]}", text)  # type: ignore[arg-type]


def table(section: Section) -> str:
    """The metrics of a section as a Markdown table; a column that would be empty is left out."""
    columns = {
        "name": [", ".join(f"`{name}`" for name in row.names) for row in ROWS[section]],
        "unit": [row.unit for row in ROWS[section]],
        "meaning": [row.meaning for row in ROWS[section]],
        NOTES.get(section, ""): [row.note for row in ROWS[section]],
        "shown in": [", ".join(row.shown) for row in ROWS[section]],
    }
    chosen = {header: cells for header, cells in columns.items() if any(cells)}
    rows = [list(chosen), ["---"] * len(chosen), *map(list, zip(*chosen.values(), strict=True))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
