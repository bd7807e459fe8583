"""Starts that are refused or broken off, and runs that are gone on with, moved, removed, copied or only looked at."""

from __future__ import annotations

import io
import os
import shutil
import signal
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from driftproof.cli.main import main
from driftproof.config import load_config
from driftproof.errors import ConfigError, UnavailableError
from driftproof.ledger.ledger import Ledger
from driftproof.report.display import LogLines
from driftproof.run import RunDirectory, claimed
from driftproof.runtime import preflight as preparing
from driftproof.runtime.placement.child import Ending
from driftproof.runtime.preflight import is_unbegun, preflight, prepare_directory
from driftproof.runtime.resources import resolve
from driftproof.runtime.train import resume
from tests.cases.test_command_line import RECIPE
from tests.runtime.runs import end, launch, processes, train, trained_once, wait_for_step
from tests.runtime.test_bad_input import small_disk
from tests.storage import read_only


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    shutil.copytree(tiny_model_dir, "models/llama")
    path = tmp_path / "recipe.toml"
    path.write_text(f'{RECIPE}[model]\npath = "models/llama"\n')
    return path


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose path has a blank, started with relative paths; not to be changed."""
    place = tmp_path_factory.mktemp("resume")
    shutil.copytree(tiny_model_dir, place / "models" / "llama")
    (place / "recipe.toml").write_text(f'{RECIPE}[model]\npath = "models/llama"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        done = train("recipe.toml", "--run.directory", "runs/co py")
    assert done.code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "next     driftproof groups 'runs/co py'"
    return place / "runs" / "co py"


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to, symlinks=True))


def test_R3_a_run_is_gone_on_with_from_elsewhere(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(finished, tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Path(tomllib.loads((run / "config.toml").read_text())["model"]["path"]).is_absolute()
    done = train("--resume", "../run", "--run.steps", 3)
    assert done.code == 0, done.stderr
    trained_once(run, steps=3, groups_per_step=2)


def test_R3_what_is_a_path_here_is_absolute_in_a_run(recipe: Path, tmp_path: Path) -> None:
    Path("data.jsonl").write_text("")
    settings = ["--task.name", "jsonl", "--task.path", "data.jsonl", "--task.heldout", "2", "--model.reference"]
    config = load_config(recipe, [*settings, "models/llama", "--rollouts.path", "data.jsonl", *SHARE])
    config = resolve(config)
    assert config.model.path == config.model.reference == tmp_path / "models" / "llama"
    assert config.rollouts.path == tmp_path / "data.jsonl"
    assert config.task.fields["path"] == str(tmp_path / "data.jsonl")
    assert config.task.fields["heldout"] == 2
    assert resolve(config) == config


SHARE = ["--rollouts.recorded_share", "0.5"]


def test_R8_channels_are_named_in_words(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parents[1])
    done = train("--resume", finished, "--run.steps", 10, "--objective.name", "grpo")
    assert done.code == 2
    assert "was made with an objective that needs no channels, not behavior_logprobs; start a new run" in done.stderr


def test_R10_last_words_send_nobody_where_the_same_happens(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts are fine at the door, and the data is another when the processes read it."""
    Path("data.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 4)
    settings = ("--task.name", "jsonl", "--task.path", "data.jsonl", "--task.heldout", 0, "--run.directory", "run")
    recipe.write_text(recipe.read_text().replace("digits = 2\n", ""))
    made = preparing.prepare_directory

    def and_then_spoil(*given: object) -> RunDirectory:
        directory = made(*given)  # type: ignore[arg-type]
        Path("data.jsonl").write_text("{")
        return directory

    monkeypatch.setattr("driftproof.runtime.train.prepare_directory", and_then_spoil)
    done = train(recipe, *settings, "--runtime.max_restarts", 0)
    assert done.code == 1
    assert "data.jsonl:1" in done.stderr
    assert done.stderr.splitlines()[-1] == "a resume would end the same way until that is mended"
    assert "--resume" not in done.stderr


def test_R10_an_ending_is_told_whole() -> None:
    for sentence in ("größe", "x" * 50_000, "a\ud800b"):
        told = Ending.from_bytes(Ending(sentence=sentence, refused_input=True).to_bytes())
        assert told.refused_input
        assert told.sentence[:1] == sentence[:1]


def test_F11_a_start_that_is_refused_for_lack_of_space_is_made_with_space(recipe: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1M") as disk:
        done = train(recipe, "--run.directory", disk / "run")
        assert done.code == 2
        assert "snapshots and checkpoints of this model need about" in done.stderr
        assert list(disk.iterdir()) == []
    with small_disk(tmp_path / "larger", "64M") as disk:
        full = disk / "full"
        full.write_bytes(b"0" * (63 * 2**20))
        assert train(recipe, "--run.directory", disk / "run").code == 2
        full.unlink()
        done = train(recipe, "--run.directory", disk / "run", "--run.steps", 1)
        assert done.code == 0, done.stderr


@pytest.mark.parametrize("broken_off_at", ["config", "ledger"])
def test_F11_a_start_that_was_broken_off_is_made_again(broken_off_at: str, recipe: Path) -> None:
    config = load_config(recipe, ["--run.directory", "run"])
    plan, run = preflight(config), Path("run")
    prepare_directory(config, plan)
    (run / "ledger.sqlite").rename(run / ".partial-ledger.sqlite")
    if broken_off_at == "config":
        (run / ".partial-ledger.sqlite").unlink()
    assert is_unbegun(run)
    with pytest.raises(UnavailableError, match=r"its start was broken off.* driftproof train run/config.toml"):
        resume(run, config, LogLines(Console(file=io.StringIO())))
    prepare_directory(config, plan)
    with pytest.raises(ConfigError, match="run directory run is not empty; choose another, or go on with --resume run"):
        prepare_directory(config, plan)


def test_F11_what_is_made_by_two_at_once_is_one_run(recipe: Path) -> None:
    config = load_config(recipe, ["--run.directory", "run"])
    plan = preflight(config)
    Path("run").mkdir()
    with claimed(Path("run")), pytest.raises(UnavailableError, match="in use by another driftproof"):
        prepare_directory(config, plan)
    assert [path.name for path in Path("run").iterdir()] == ["lock"]
    assert prepare_directory(config, plan).config.is_file()


def test_F11_a_disk_that_fills_while_the_directory_is_made(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(recipe, ["--run.directory", "deep/run"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Ledger, "create", full)
    with pytest.raises(ConfigError, match="run directory deep/run cannot be written: No space left on device"):
        prepare_directory(config, preflight(config))
    assert not Path("deep").exists()


def test_F12_a_ledger_that_is_older_than_its_checkpoint_is_repaired(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new ledger of the same plan is what a lost log leaves of a short run."""
    run = copied(finished, tmp_path / "a run")
    with Ledger(run / "ledger.sqlite") as ledger:
        plan = ledger.plan
    (run / "ledger.sqlite").unlink()
    Ledger.create(run / "ledger.sqlite", plan).close()
    assert main(["train", "--resume", str(run)]) == 2
    assert f"driftproof ledger repair '{run}'" in capsys.readouterr().err
    assert main(["ledger", "repair", str(run)]) == 0
    assert main(["ledger", "check", str(run)]) == 0
    with Ledger(run / "ledger.sqlite") as ledger:
        assert ledger.step == 2


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 0.5])
def test_F12_a_ledger_without_the_end_of_its_log_is_repaired(left: float, recipe: Path) -> None:
    run = Path("run").absolute()
    process = launch(recipe, "--run.directory", run, "--run.steps", 3000, "--learner.checkpoint_every", 2)
    wait_for_step(run, 7, process)
    pids = [*processes(run).values(), process.pid]
    # Stopped first, so that nobody writes what is cut off.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    process.communicate()
    log = run / "ledger.sqlite-wal"
    os.truncate(log, int(log.stat().st_size * left))
    newest = max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
    done = train("--resume", run, "--run.steps", newest + 3)
    if done.code:
        assert f"driftproof ledger repair {run}" in done.stderr
        assert main(["ledger", "repair", str(run)]) == 0
        assert main(["ledger", "check", str(run)]) == 0
        done = train("--resume", run, "--run.steps", newest + 3)
    assert done.code == 0, done.stderr
    with Ledger(run / "ledger.sqlite") as ledger:
        assert ledger.step == newest + 3


@pytest.mark.slow
@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_F13_a_run_whose_directory_is_gone_says_so(what: str, recipe: Path) -> None:
    run = Path("run").absolute()
    process = launch(recipe, "--run.directory", run, "--run.steps", 3000)
    wait_for_step(run, 3, process)
    pids = processes(run).values()
    run.rename("moved")
    if what == "replaced":
        shutil.copytree("moved", run, symlinks=True)
    else:
        shutil.rmtree("moved", ignore_errors=True)
    _, stderr = end(process)
    assert process.returncode == 1
    assert f"driftproof: run directory {run} was removed or moved while the run was working on it" in stderr
    assert "Traceback" not in stderr
    assert "go on with: driftproof train --resume NEW-PLACE" in stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_snapshot_of_a_run_is_evaluated_on_its_task(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = finished / "snapshots" / "latest"
    assert main(["eval", str(model), "--evaluation.prompts", "5", "--evaluation.samples", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"task and sampling of {finished}")
    assert "on arithmetic, 5 held-out prompts" in said
    # A task that is named is not mixed with that of the run.
    assert main(["eval", str(model), "--task.name", "gsm8k"]) == 2
    assert "task 'gsm8k' needs the field 'path'" in capsys.readouterr().err


def test_F24_a_finished_run_is_looked_at_where_nothing_can_be_written(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base model is not there either, as on another machine."""
    fixed = copied(finished, tmp_path / "fixed")
    config = (fixed / "config.toml").read_text()
    (fixed / "config.toml").write_text(config.replace(str(finished.parents[1] / "models"), "/nowhere"))
    monkeypatch.chdir(tmp_path)
    with read_only(fixed):
        for words in (["groups", str(fixed), "--limit", "2"], ["report", str(fixed)], ["ledger", "check", str(fixed)]):
            assert main(words) == 0
            assert capsys.readouterr().out
