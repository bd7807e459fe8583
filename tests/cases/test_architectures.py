"""Architectures that people bring: decoded, trained and saved right, or refused before anything is made.

The names of rows (A1, D7, ...) are those of the collection of situations from public reports.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.architectures.measures import CLOSE, greedy_agreement, ratio_of_fresh_data, reopened
from benchmarks.architectures.models import make, make_tokenizer
from driftproof.cli.main import main
from driftproof.errors import ModelError
from driftproof.learner.policy import Policy
from driftproof.runtime.architecture import check_architecture
from driftproof.weights.snapshots import Publisher

FEW = (
    "mistral",
    "gemma2",
    "gpt_oss",
    "qwen3_moe",
    "gpt_neox",
    "gpt2 of the hub",
    "qwen2, head stored",
    "granite",
    "opt",
)
"""Windows in all layers; in some, and caps; sinks; experts; other names (A10); a tied head (D7); a scale; dropout."""
REFUSED = ("mamba", "bloom")

RECIPE = """
[run]
name = "hunt"
steps = 1
[task]
name = "arithmetic"
digits = 2
[objective]
name = "grpo"
[sampling]
max_tokens = 12
[rollouts]
group_size = 4
[learner]
groups_per_step = 2
lr = 1e-3
[runtime]
mode = "sync"
[evaluation]
prompts = 0
[tracking]
tensorboard = false
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Path:
    return make_tokenizer(directory)


@pytest.fixture(scope="module")
def few(directory: Path, tokenizer: Path) -> dict[str, Path]:
    return {name: make(name, directory, tokenizer) for name in FEW}


@pytest.mark.parametrize("name", FEW)
def test_greedy_responses_are_those_of_generate(few: dict[str, Path], name: str) -> None:
    right, responses = greedy_agreement(few[name])
    assert right == responses


@pytest.mark.parametrize("name", FEW)
def test_fresh_data_has_a_ratio_of_1(few: dict[str, Path], tmp_path: Path, name: str) -> None:
    """T2: with gradient checkpointing, which wakes no dropout."""
    assert ratio_of_fresh_data(few[name], tmp_path, gradient_checkpointing=True) < CLOSE


def test_the_first_snapshot_has_the_logits_of_the_base_model_in_a_new_process(
    few: dict[str, Path], tmp_path: Path
) -> None:
    snapshots = {
        name: Publisher(tmp_path / name, model).publish(0, Policy.open(model, device="cpu").published()).path
        for name, model in few.items()
    }
    found = reopened({name: (model, snapshots[name]) for name, model in few.items()})
    assert found == dict.fromkeys(FEW, 0.0)


@pytest.mark.parametrize("name", [*FEW, "qwen2 with windows", "cohere", "phi3"])
def test_the_small_stand_in_of_what_trains_passes(directory: Path, tokenizer: Path, name: str) -> None:
    check_architecture(make(name, directory, tokenizer), decoded=True, gradient_checkpointing=True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused_before_anything_is_made(
    directory: Path, tokenizer: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A3 and A5: the dry run, the check and the run say the same."""
    model = make(name, directory, tokenizer)
    with pytest.raises(ModelError) as caught:
        check_architecture(model, decoded=True)
    recipe = write_recipe(tmp_path, model)
    for arguments in (["--dry-run"], ["--run.directory", str(tmp_path / "run")]):
        assert main(["train", str(recipe), *arguments]) == 2
        assert str(caught.value) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["check", str(recipe)]) == 1
    assert "".join(str(caught.value).split()) in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["opt", "qwen3_moe", "gemma2", "mistral"])
def test_check_counts_memory_of_every_architecture(
    directory: Path, tokenizer: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A7, A8: a table, not a traceback."""
    assert main(["check", str(write_recipe(tmp_path, make(name, directory, tokenizer)))]) == 0
    shown = capsys.readouterr().out
    assert "learner" in shown
    assert "this recipe can be run here" in shown


def write_recipe(directory: Path, model: Path) -> Path:
    path = directory / "recipe.toml"
    path.write_text(f'{RECIPE}[model]\npath = "{model}"\n')
    return path
