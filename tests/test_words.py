"""Docstrings stand alone, and everything is spelled one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "driftproof"
LEANING = re.compile(r"(Of|That|Those|Whose|What|Where|As|With)\b")
"""First words of a text that hangs from a name beside it."""


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring of a module, class, function or field."""
    for node in ast.walk(ast.parse(path.read_text())):
        for child in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                yield child.lineno, child.value.value.strip()


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_docstrings_stand_alone(path: Path) -> None:
    leaning = [f"line {line}: {text.splitlines()[0]}" for line, text in docstrings(path) if LEANING.match(text)]
    assert not leaning, "\n".join(leaning)


def test_behavior_is_spelled_one_way() -> None:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml")]
    folders = [path for name in ("src", "docs", "examples", "recipes", "studies") for path in (ROOT / name).rglob("*")]
    files = [*pages, *(path for path in folders if path.suffix in (".py", ".md", ".toml"))]
    assert not [
        str(path.relative_to(ROOT)) for path in files if re.search("behaviour", path.read_text(), re.IGNORECASE)
    ]
