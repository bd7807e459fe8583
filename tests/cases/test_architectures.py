"""Architectures that people bring: decoded, trained and saved right, or refused before anything is made.

The names of rows (A1, D7, ...) are those of the collection of situations from public reports.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.architectures.__main__ import PAGE, measure
from benchmarks.architectures.measures import CLOSE, greedy_agreement, ratio_of_fresh_data, reopened
from benchmarks.architectures.models import KINDS, make, make_tokenizer
from driftproof.cli.main import main
from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.vllm.plugin import check_snapshot, read_shapes
from driftproof.errors import EngineError, ModelError
from driftproof.learner.policy import Policy
from driftproof.ledger.ledger import Ledger
from driftproof.metrics import names
from driftproof.runtime.architecture import check_architecture
from driftproof.weights.snapshots import Publisher

FEW = (
    "mistral",
    "gemma2",
    "gpt_oss",
    "qwen3_moe",
    "pythia of the hub",
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
    # A server that has opened the base model takes it, too.
    for name, model in few.items():
        check_snapshot(snapshots[name], model, read_shapes(model), tied=True)


@pytest.mark.parametrize("name", FEW)
def test_the_small_stand_in_of_what_trains_passes(few: dict[str, Path], name: str) -> None:
    check_architecture(few[name], decoded=True, gradient_checkpointing=True)


@pytest.mark.slow
def test_all_of_them(tmp_path: Path) -> None:
    rows = measure(list(KINDS), tmp_path)
    assert [name for name, row in rows.items() if not (row.refused or row.good)] == []
    assert sum(row.good for row in rows.values()) >= 60


def test_the_page_has_a_row_for_each() -> None:
    page = PAGE.read_text()
    assert [name for name in KINDS if f"\n| {name} | " not in page] == []


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


def test_longrope_ends_at_the_original_context(
    directory: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A1, A2: within it the ratio is 1 (among the measures of all); a longer text is refused, and says why."""
    model = make("phi3 with longrope", directory, tokenizer)
    recipe = write_recipe(tmp_path, model)
    assert main(["train", str(recipe), "--dry-run", "--sampling.max_tokens", "90"]) == 0
    capsys.readouterr()
    assert main(["train", str(recipe), "--dry-run", "--sampling.max_tokens", "92"]) == 2
    assert "context of 96 (the original one: under longrope" in capsys.readouterr().err
    with pytest.raises(EngineError, match="at most the model's 96 positions"):
        EmbeddedEngine.from_directory(model, slots=1, max_length=97)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral", "gpt2 of the hub", "qwen3_moe"])
def test_a_run_of_processes(directory: Path, tokenizer: Path, name: str, tmp_path: Path) -> None:
    """A3, A10: from a recipe to a snapshot, and on from its checkpoint."""
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, make(name, directory, tokenizer))
    assert main(["train", str(recipe), "--run.directory", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--run.steps", "2"]) == 0
    with Ledger(run / "ledger.sqlite") as ledger:
        for metrics in ledger.steps():
            assert abs(metrics[names.RATIO_MIN] - 1) < CLOSE > abs(metrics[names.RATIO_MAX] - 1)


@pytest.mark.parametrize("name", ["opt", "qwen3_moe", "gemma2", "mistral"])
def test_check_counts_memory_of_every_architecture(
    directory: Path, tokenizer: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A7, A8: a table, not a traceback."""
    assert main(["check", str(write_recipe(tmp_path, make(name, directory, tokenizer)))]) == 0
    shown = capsys.readouterr().out
    assert "learner" in shown
    assert "this recipe can be run here" in shown


def test_a_quantized_model_is_refused(few: dict[str, Path], tmp_path: Path) -> None:
    """Its snapshots would have the configuration of quantized weights, and hold others."""
    model = shutil.copytree(few["gpt_oss"], tmp_path / "model")
    configuration = json.loads((model / "config.json").read_text())
    configuration["quantization_config"] = {"quant_method": "mxfp4"}
    (model / "config.json").write_text(json.dumps(configuration))
    with pytest.raises(ModelError, match=r"is quantized \(mxfp4\), and quantized weights cannot be trained; give"):
        check_architecture(model, decoded=True)


def write_recipe(directory: Path, model: Path) -> Path:
    path = directory / "recipe.toml"
    path.write_text(f'{RECIPE}[model]\npath = "{model}"\n')
    return path
