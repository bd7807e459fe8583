"""Every objective has a recipe that trains the quickstart's model on the quickstart's task."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from driftproof.config import load_config
from driftproof.objectives import OBJECTIVES
from driftproof.runtime.build import make_objective
from driftproof.runtime.preflight import preflight
from driftproof.tiny.model import make_tiny_model
from tests.runtime.runs import summary, train, trained_once

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "objectives"

each_recipe = pytest.mark.parametrize("name", sorted(OBJECTIVES))


def test_every_recipe_is_of_an_objective_and_every_objective_has_one() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(OBJECTIVES)


@each_recipe
def test_a_recipe_is_ready_to_run(name: str, tiny_model_dir: Path) -> None:
    path = FOLDER / f"{name}.toml"
    assert f"# driftproof train recipes/objectives/{name}.toml" in path.read_text()
    config = load_config(path, ["--model.path", str(tiny_model_dir)])
    assert (config.objective.name, config.run.name) == (name, name)
    plan = preflight(config)
    assert plan.steps == 100
    objective = make_objective(config)
    assert plan.channels <= objective.needs
    summed = objective.aggregation == "seq-mean-token-sum-norm"
    assert objective.horizon == (config.sampling.max_tokens if summed else None)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's: the one that `make models/tiny-qwen3` has left, or made anew."""
    made = ROOT / "models" / "tiny-qwen3"
    if (made / "model.safetensors").exists():
        return made
    path = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    make_tiny_model(path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
@each_recipe
def test_a_recipe_trains_the_quickstart(name: str, base_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = train(FOLDER / f"{name}.toml", "--model.path", base_model, "--run.directory", run)
    assert done.code == 0, done.stderr
    trained_once(run, steps=100, groups_per_step=16)
    result = summary(run)
    assert result["events"] == {}
    assert result["accuracy_after"] > result["accuracy_before"]
    for line in (run / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        assert math.isfinite(metrics["reward"])
        assert math.isfinite(metrics["loss"])
