"""What a recipe needs, what this machine has, and what `auto` comes to."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from driftproof.cli.main import main
from driftproof.config import Config, load_config
from driftproof.errors import ConfigError
from driftproof.runtime import resources
from driftproof.runtime.preflight import check_space
from driftproof.runtime.resources import (
    engine_memory,
    learner_memory,
    memory_of,
    read_config,
    requirements,
    resolve,
    share_cores,
)
from tests.runtime.runs import write_recipe

ROOT = Path(__file__).parents[2]
PAPER = sorted((ROOT / "recipes" / "paper").glob("*.toml"))


def test_learner_and_worker_are_estimated_from_the_recipe(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    settings = ["--learner.token_budget", "4096", "--engine.slots", "7"]
    learner, worker = requirements(load_config(recipe, settings), prompt_tokens=5)
    config = read_config(tiny_model_dir)
    # Four groups of four responses of four tokens, the last of which is not read.
    assert learner.needed == sum(learner_memory(config, rows=4, row_tokens=5 + 4 * 3).values())
    assert worker.needed == sum(engine_memory(config, slots=7, tokens=5 + 4).values())
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


@pytest.mark.parametrize(
    ("cores", "parameters", "workers", "in_turns", "threads"),
    [
        (2, 600_000, 1, False, (1, 1)),
        (64, 10_000_000, 4, False, (1, 1)),
        (64, 600_000, 1, True, (1, 1)),
        (1, 135_000_000, 1, False, (1, 1)),
        (2, 135_000_000, 1, False, (2, 1)),
        (16, 135_000_000, 1, False, (12, 4)),
        (16, 135_000_000, 3, False, (12, 1)),
        (16, 135_000_000, 0, False, (12, 4)),
        (16, 135_000_000, 1, True, (16, 16)),
    ],
)
def test_cores_go_to_who_is_busy(
    cores: int, parameters: int, workers: int, in_turns: bool, threads: tuple[int, int]
) -> None:
    assert share_cores(cores, parameters, workers, in_turns=in_turns) == threads


def test_a_tiny_model_has_the_same_numbers_on_every_machine(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = resolve(load_config(write_recipe(tmp_path, tiny_model_dir)))
    assert (config.learner.threads, config.engine.threads, config.learner.token_budget) == (1, 1, 16384)
    assert config.learner.row_tokens == 512
    assert resolve(Config.from_toml(config.to_toml())) == config


def big_model(directory: Path, tiny: Path) -> Path:
    """A model of 150 million parameters that takes no space: its weights are a header over a hole."""
    model = shutil.copytree(tiny, directory / "big")
    architecture = json.loads((model / "config.json").read_text())
    sizes = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 8,
        "layer_types": ["full_attention"] * 8,
    }
    (model / "config.json").write_text(json.dumps(architecture | sizes))
    numbers = 150_000_000
    header = json.dumps({"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * numbers)
    return model


def test_the_budget_is_what_memory_holds(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path, big_model(tmp_path, tiny_model_dir))
    budgets = []
    for gigabytes in (2, 16, 1000):
        monkeypatch.setattr(resources, "memory_of", lambda _, size=gigabytes: size * 2**30)
        config = load_config(recipe)
        resolved = resolve(config)
        assert [need.fits for need in requirements(resolved)] == [gigabytes > 2, True]
        assert requirements(config) == requirements(resolved)
        assert resolve(load_config(recipe, ["--learner.token_budget", "777"])).learner.token_budget == 777
        budgets.append(resolved.learner.positions)
    assert budgets[0] == 1024 < budgets[1] < budgets[2] == 16384
    assert resolve(resolved) == resolved


def test_space_is_counted_in_float32(tiny_model_dir: Path, tmp_path: Path) -> None:
    half = shutil.copytree(tiny_model_dir, tmp_path / "half")
    weights = load_file(half / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, half / "model.safetensors")
    messages = []
    for model in (tiny_model_dir, half):
        config = load_config(write_recipe(tmp_path, model), ["--learner.keep_snapshots", "99999999"])
        with pytest.raises(ConfigError, match="GB free; snapshots and checkpoints of this model need about") as caught:
            check_space(config, tmp_path)
        messages.append(str(caught.value).partition("need about")[2])
    assert messages[0] == messages[1]
