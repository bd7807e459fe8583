"""Imports point one way, and files stay short: what keeps the rooms of `src/driftproof` what their names say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "driftproof"
LAYERS = (
    {"types", "errors", "faults", "slips", "values", "run", "text"},
    {"objectives", "logprobs", "metrics"},
    {"engines", "ledger", "weights", "verify", "tasks", "environments"},
    {"rollout", "learner", "inbox", "evaluation", "report", "tiny"},
    {"runtime", "config"},
    {"lab", "integrations"},
    {"cli"},
)
"""From the ground up: a room imports from its own layer and from those below."""
KNOW_THE_CONFIGURATION = {"config", "runtime", "lab", "cli"}
LONGEST_FILE, LONGEST_CLASS = 420, 250
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(SRC.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of driftproof's own, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "driftproof":
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("driftproof."):
            yield node.lineno, str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from ((node.lineno, name[1]) for name in names if name[0] == "driftproof" and len(name) > 1)


def test_every_room_has_its_layer() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} <= FLOOR.keys()


def test_imports_point_downwards() -> None:
    wrong = [
        f"{path.relative_to(SRC)}:{line} imports from {room}, a layer above"
        for path in FILES
        for line, room in imported_rooms(path)
        if FLOOR[room] > FLOOR.get(room_of(path), 0)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_rooms_need_each_other() -> None:
    needs = {room_of(path): set[str]() for path in FILES}
    for path in FILES:
        needs[room_of(path)] |= {room for _, room in imported_rooms(path)} - {room_of(path)}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(f"rooms that import each other: {' -> '.join(error.args[1])}")


def test_few_rooms_know_the_configuration() -> None:
    knowing = {room_of(path) for path in FILES for _, room in imported_rooms(path) if room == "config"}
    assert knowing <= KNOW_THE_CONFIGURATION


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_files_and_classes_can_be_read_at_once(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_CLASS, node.name
