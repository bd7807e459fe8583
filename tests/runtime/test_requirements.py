"""What a recipe needs, beside what this machine has."""

import os
from pathlib import Path

import pytest

from driftproof.cli.main import main
from driftproof.config import load_config
from driftproof.runtime.memory import engine_memory, learner_memory, read_config
from driftproof.runtime.requirements import memory_of, requirements
from tests.runtime.runs import write_recipe

ROOT = Path(__file__).parents[2]
PAPER = sorted((ROOT / "recipes" / "paper").glob("*.toml"))


def test_learner_and_worker_are_estimated_from_the_recipe(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    settings = ["--learner.token_budget", "4096", "--engine.slots", "7"]
    learner, worker = requirements(load_config(recipe, settings))
    config = read_config(tiny_model_dir)
    assert learner.needed == learner_memory(config, rows=32, row_tokens=128).total
    assert worker.needed == engine_memory(config, slots=7, tokens=128).total
    assert (learner.process, worker.process) == ("learner", "each worker")
    assert learner.available == worker.available == memory_of("cpu") > 2**30
    assert learner.fits


def test_a_recipe_that_can_be_run_here(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    assert main(["check", str(write_recipe(tmp_path, tiny_model_dir))]) == 0
    assert "this recipe can be run here" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", PAPER, ids=lambda path: path.stem)
def test_the_papers_recipes_say_what_this_machine_lacks(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    architecture = str(recipe.with_suffix(""))
    assert main(["check", str(recipe), "--model.path", architecture, "--engine.slots", "2048"]) == 1
    out = capsys.readouterr().out
    assert "each worker needs more memory than cpu has" in out
    assert "has no *.safetensors weights" in out


def test_there_are_recipes_of_the_paper() -> None:
    assert [path.stem for path in PAPER] == ["llama-3.2-3b-instruct", "qwen3-1.7b-base", "qwen3-4b-base"]


def test_settings_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--learner.lr", "1"]) == 2
    assert "settings belong to a recipe: driftproof check RECIPE" in capsys.readouterr().err
