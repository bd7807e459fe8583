"""The table of bounds in docs/reliability.md says what the constants say."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
ROW = re.compile(r"^\| .* \| ([\d,.]+) \| `([\w.]+)\.([A-Z_]+)` \|$", re.MULTILINE)
BOUNDS = ROW.findall(PAGE.read_text())


def test_all_bounds_are_there() -> None:
    """Each constant of the inbox that is a bound, too."""
    assert len(BOUNDS) == len(set(BOUNDS)) >= 19
    table = PAGE.read_text().partition("| what | at most | constant |\n|---|---|---|\n")[2].partition("\n\n")[0]
    assert len(table.splitlines()) == len(BOUNDS), "every row has a number and a constant"


@pytest.mark.parametrize(("number", "module", "name"), BOUNDS)
def test_a_bound_is_what_the_page_says(number: str, module: str, name: str) -> None:
    assert getattr(importlib.import_module(f"driftproof.{module}"), name) == float(number.replace(",", ""))
