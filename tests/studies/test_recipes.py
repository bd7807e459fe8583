"""The grids of docs/results.md."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from driftproof.lab.settings import LabConfig
from driftproof.objectives import find

ROOT = Path(__file__).parents[2]
RECIPES = [*sorted((ROOT / "studies" / "recipes").glob("*.toml")), *sorted((ROOT / "recipes" / "lab").glob("*.toml"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_are_valid_as_their_comments_call_them(path: Path) -> None:
    (command,) = [line for line in path.read_text().splitlines() if line.startswith("# driftproof lab")]
    assert command == f"# driftproof lab {path.relative_to(ROOT)}"
    config = LabConfig.load(path)
    assert config.run.name == path.stem
    for objective in config.lab.objectives:
        assert set(objective.fields) <= {field.name for field in fields(find(objective.name))}


def test_every_grid_of_the_page_has_its_recipe() -> None:
    grids = re.findall(
        r"<!-- lab: (?:table|setting|differences|picture) (\S+)", (ROOT / "docs" / "results.md").read_text()
    )
    assert grids
    assert set(grids) <= {path.stem for path in RECIPES}
