"""The table of bounds in docs/reliability.md says what the constants, and the settings' defaults, say."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from driftproof.config import Config

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
TABLE = PAGE.partition("| what | at most | constant |\n|---|---|---|\n")[2].partition("\n\n")[0]
BOUNDS = re.findall(r"^\| .* \| ([\d,.]+) \| `([\w.]+)` \|$", TABLE, re.MULTILINE)


def bound(name: str) -> object:
    """The constant, or the default of the setting, of a name."""
    place, _, last = name.rpartition(".")
    if last.isupper():
        return getattr(importlib.import_module(f"driftproof.{place}"), last)
    section = Config.model_fields[place].annotation
    fields = {**getattr(section, "model_fields", {}), **getattr(section, "__dataclass_fields__", {})}
    return fields[last].default


def test_every_row_has_a_number_and_a_name() -> None:
    assert len(TABLE.splitlines()) == len(BOUNDS) == len(set(BOUNDS)) >= 30


@pytest.mark.parametrize(("number", "name"), BOUNDS)
def test_a_bound_is_what_the_page_says(number: str, name: str) -> None:
    assert bound(name) == float(number.replace(",", ""))
