"""The commands beside `train`, as a user calls them."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from driftproof.cli.main import main, split_settings
from driftproof.config import Config
from tests.runtime.runs import train, write_recipe
from tests.storage import read_only


@pytest.fixture(scope="module")
def run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that came to its end."""
    directory = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "runtime"))
        done = train(write_recipe(directory, tiny_model_dir), "--run.directory", directory / "run", "--run.steps", 2)
    assert done.code == 0, done.stderr
    return directory / "run"


@pytest.mark.parametrize(
    ("arguments", "words", "settings"),
    [
        (["train", "r.toml", "--a.b", "1", "--dry-run"], ["train", "r.toml", "--dry-run"], ["--a.b", "1"]),
        (["train", "--a.b=1", "--resume", "run.d"], ["train", "--resume", "run.d"], ["--a.b=1"]),
        (["train", "--a.b"], ["train"], ["--a.b"]),
        (["train", "--a.b", "-1"], ["train"], ["--a.b", "-1"]),
    ],
)
def test_settings_are_told_from_words(arguments: list[str], words: list[str], settings: list[str]) -> None:
    assert split_settings(arguments) == (words, settings)


def test_a_dry_run_prints_what_would_run_and_makes_nothing(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "runtime"))
    recipe = write_recipe(tmp_path, tiny_model_dir)
    before = set(tmp_path.rglob("*"))
    assert main(["train", str(recipe), "--dry-run", "--learner.lr", "3e-4"]) == 0
    config = Config.model_validate(tomllib.loads(capsys.readouterr().out))
    assert config.learner.lr == 3e-4
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("by", ["best", "worst", "age", "prompt"])
def test_groups(by: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["groups", str(run), "--by", by, "--limit", "3"]) == 0
    assert "+0=" in capsys.readouterr().out


def test_eval(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = run / "snapshots" / "latest"
    arguments = ["--task.name", "arithmetic", "--sampling.max_tokens", "4", "--evaluation.prompts", "5"]
    assert main(["eval", str(model), *arguments]) == 0
    assert "5 held-out prompts" in " ".join(capsys.readouterr().out.split())
    assert main(["eval", str(tmp_path), *arguments]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_report_draws_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.png").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out prompts" in capsys.readouterr().out


def test_a_run_is_shown_from_storage_that_cannot_be_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = Path(shutil.copytree(run, tmp_path / "fixed", symlinks=True))
    for log in fixed.glob("ledger.sqlite-*"):
        log.unlink()
    with read_only(fixed):
        assert main(["groups", str(fixed), "--limit", "3"]) == 0
        assert "+0=" in capsys.readouterr().out
        assert main(["report", str(fixed)]) == 0
        assert "picture  none: " in capsys.readouterr().out
        assert main(["ledger", "check", str(fixed)]) == 0
        assert "nothing is wrong" in capsys.readouterr().out


def test_check_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "driftproof[math]" in out
    assert "cores" in out


@pytest.mark.parametrize("command", ["groups", "report"])
def test_what_is_no_run(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "is not a run: it has no config.toml" in capsys.readouterr().err


def test_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "model"
    assert main(["tiny-model", str(directory), "--architecture", "llama", "--tokenizer", "bytes", "--random"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert main(["tiny-model", str(directory)]) == 2
    assert str(directory) in capsys.readouterr().err


def test_tiny_model_of_another_task(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    settings = ["--task", "running_sums", "--task.most_terms", "3", "--task.heldout=9", "--accuracy", "0.2"]
    assert main(["tiny-model", str(directory), *settings, "--random"]) == 0
    record = json.loads((directory / "tiny_model.json").read_text())
    assert (record["task"], record["task_fields"]) == ("running_sums", {"most_terms": 3, "heldout": 9})
    assert record["accuracy"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "arithmetics"], "unknown task 'arithmetics'; did you mean 'arithmetic'?"),
        (["--task", "running_sums", "--task.most_terms", "1"], "least_terms is 2 and most_terms 1; they must be"),
        (["--task.terms", "3"], "task 'arithmetic': unknown field 'terms'"),
        (["--task.name", "arithmetic"], "unknown setting 'task.name'; tiny-model takes --task NAME and --task.FIELD"),
        (["--learner.lr", "1"], "unknown setting 'learner.lr'; tiny-model takes --task NAME and --task.FIELD VALUE"),
        (["--accuracy", "0.9"], "accuracy is 0.9; it must be above 0 and below 0.7"),
    ],
)
def test_a_tiny_model_that_cannot_be_made(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tiny-model", str(tmp_path / "model"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_settings_where_none_belong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run", "--learner.lr", "1"]) == 2
    assert "settings belong to train, eval, lab, check and tiny-model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "the following arguments are required: DIRECTORY"),
        (["report", "nowhere"], "nowhere is not a grid: it has no config.toml"),
        (["report", "nowhere", "--lab.seeds", "[1]"], "settings belong to train, eval, lab, check and tiny-model"),
        (["recipe.toml", "nowhere"], "unrecognized arguments: nowhere"),
        (["nowhere.toml"], "recipe nowhere.toml cannot be read"),
        (["run", "nowhere.toml"], "recipe nowhere.toml cannot be read"),
    ],
)
def test_a_lab_that_cannot_be(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_without_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[model]\npath = "models/tiny-qwen3"\n')
    assert main(["lab", str(recipe)]) == 2
    assert "setting 'lab' is missing" in capsys.readouterr().err
