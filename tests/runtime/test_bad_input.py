"""Bad input is refused with one sentence before any process starts, and nothing is lost by what goes wrong later."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from driftproof.cli.main import main
from driftproof.ledger.ledger import Ledger
from driftproof.tiny.model import make_tiny_model
from tests.runtime.runs import end, launch, summary, train, trained_once, wait_for_step, write_recipe


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return write_recipe(tmp_path, tiny_model_dir)


def files() -> set[Path]:
    """All files but SQLite's own beside a ledger, which come and go with its connections."""
    return {path for path in Path.cwd().rglob("*") if not path.name.startswith("ledger.sqlite-")}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The sentence with which `driftproof train` refuses, having made nothing."""
    before = files()
    assert main(["train", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("driftproof: ")
    assert "Traceback" not in captured.err
    assert files() == before
    return captured.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--objective.name", "asymp"], ["unknown objective 'asymp'", "did you mean 'asympo'", "asymre, cispo"]),
        (["--objective.flor", "0.1"], ["objective 'asympo': unknown field 'flor'", "did you mean 'floor'"]),
        (["--objective.floor", "-1"], ["floor is -1", "from 0.0 to 10.0"]),
        (["--learner.learning_rate", "1"], ["unknown setting 'learner.learning_rate'", "valid: ", "learner.lr"]),
        (["--lerner.lr", "1"], ["unknown setting 'lerner'", "did you mean 'learner'"]),
        (["--learner.lr", "fast"], ["learner.lr", "'fast'", "number"]),
        (["--learner.lr"], ["--learner.lr needs a value"]),
        (["--task.name", "jsnol"], ["'jsnol'", "'jsonl'"]),
        (["--task.hold", "3"], ["'hold'", "heldout"]),
        (
            ["--sampling.max_tokens", "16384"],
            ["prompt", "has 4 tokens", "context of 16,384", "lower sampling.max_tokens"],
        ),
        (["--model.path", "nowhere"], ["model directory nowhere does not exist", "driftproof tiny-model nowhere"]),
        (
            ["--engine.name", "recorded"],
            ["engine.name = 'recorded': a recorded trace is no engine", "recorded_share = 1"],
        ),
        (["--rollouts.recorded_share", "0.25"], ["rollouts.path and rollouts.recorded_share belong together"]),
        (["--objective.name", "grpo", "--sampling.top_p", "0.9"], ["grpo", "behavior_logprobs", "top_p=0.9"]),
        (["--runtime.mode", "sync", "--rollouts.workers", "2"], ["rollouts.workers must be 1"]),
        (["--learner.updates_per_step", "3"], ["groups_per_step 4", "updates_per_step 3", "choose a divisor"]),
        (["--model.reference", "nowhere"], ["model.reference is given", "has no KL term", "--objective.kl"]),
        (["--model.reference", "nowhere", "--objective.kl", "0.1"], ["model directory nowhere does not exist"]),
        (["--engine.device", "tpu"], ["device 'tpu' is not available here", "valid: auto, cpu"]),
        (["--tracking.trackio", "p"], ["tracking.trackio needs its package", "driftproof[trackio]"]),
        (["--run.directory", "/proc/driftproof"], ["run directory /proc/driftproof cannot be written"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_settings(overrides: list[str], words: list[str], recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, recipe, *overrides)
    for word in words:
        assert word in message


def test_recipes(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in refused(capsys, tmp_path / "no.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    assert "is not valid TOML" in refused(capsys, broken)
    broken.write_text('[run]\nsteps = "many"\n[model]\npath = "x"\n')
    assert "run.steps = 'many'" in refused(capsys, broken)
    broken.write_text("[run]\nsteps = 1\n")
    assert "setting 'model.path' is missing" in refused(capsys, broken)
    assert "give a recipe to start a run, or --resume" in refused(capsys)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no *.safetensors weights"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_models_with_parts_missing(
    missing: str, words: str, recipe: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (model / missing).unlink()
    assert words in refused(capsys, recipe, "--model.path", model)


def test_a_tokenizer_of_another_model(
    recipe: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    make_tiny_model(tmp_path / "bytes", tokenizer="bytes", train=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "bytes" / name, model / name)
    message = refused(capsys, recipe, "--model.path", model)
    assert "the tokenizer has" in message
    assert "they do not belong together" in message


def test_data_with_a_bad_line(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    good = json.dumps({"prompt": "1+1=", "answer": "2"})
    for bad, words in [
        ("{", ["data.jsonl:2", "JSON"]),
        ('{"prompt": "1+1="}', ["data.jsonl:2", "answer"]),
        ('{"prompt": 3, "answer": "2"}', ["data.jsonl:2", "prompt"]),
    ]:
        data.write_text(f"{good}\n{bad}\n{good}\n")
        message = refused(capsys, recipe)
        for word in words:
            assert word in message
    data.write_text("")
    assert "data.jsonl" in refused(capsys, recipe)


def test_text_that_the_tokenizer_cannot_read(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": prompt, "answer": "2"} for prompt in ("1+1=", "½+1½=", "3-1=")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refused(capsys, recipe, "--task.heldout", 1)
    assert "the tokenizer cannot read '½+1½='" in message
    assert "--tokenizer bytes" in message


def test_recorded_groups_longer_than_the_context(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    response = {"text": "1" * 20_000, "correct": False}
    row = {"problem": "1+1=", "answer": "2", "responses": [response, {"text": "2", "correct": True}]}
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    recipe.write_text(re.sub(r"\[task\][^\[]*", "", recipe.read_text()))
    message = refused(
        capsys, recipe, "--task.name", "recorded", "--rollouts.recorded_share", 1,
        "--rollouts.path", tmp_path / "trace.jsonl",
    )  # fmt: skip
    assert re.search(
        r"trace\.jsonl:\d: the prompt '1\+1=' is too long: it and its longest response have 20,005 tokens", message
    )


def test_a_run_directory_that_is_not_empty(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    message = refused(capsys, recipe, "--run.directory", tmp_path / "run")
    assert f"run directory {tmp_path / 'run'} is not empty" in message
    assert f"--resume {tmp_path / 'run'}" in message


def test_resuming_what_cannot_be_resumed(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere is not a run" in refused(capsys, "--resume", "nowhere")
    done = train(recipe, "--run.directory", tmp_path / "run", "--run.steps", 1, "--evaluation.prompts", 0)
    assert done.code == 0, done.stderr
    make_tiny_model(tmp_path / "llama", architecture="llama", train=False)
    assert "was made with another model" in refused(capsys, "--resume", tmp_path / "run", "--model.path", "llama")
    assert "run.seed 0, not 1" in refused(capsys, "--resume", tmp_path / "run", "--run.seed", "1")
    assert "needs no channels" in refused(capsys, "--resume", tmp_path / "run", "--objective.name", "grpo")


@pytest.mark.parametrize(
    ("scorer", "problem"),
    [
        ("hangs", "verifier exceeded 0.5 s"),
        pytest.param("not_a_number", "verifier returned nan", marks=pytest.mark.slow),
        pytest.param("crashes", "verifier crashed", marks=pytest.mark.slow),
    ],
)
def test_a_verifier_that_fails_costs_a_reward_and_no_group(
    scorer: str, problem: str, recipe: Path, tmp_path: Path
) -> None:
    done = train(
        recipe,
        "--run.directory", tmp_path / "run", "--run.steps", 2, "--evaluation.prompts", 0,
        "--verify.timeout_seconds", 0.5,
        "--task.verifier", f"scorers:{scorer}",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "verification failed" in done.stdout
    trained_once(tmp_path / "run", steps=2, groups_per_step=4)
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        problems = [text for record in ledger.records() for text in record.group.problems if text]
        metrics = ledger.steps()
    assert problems
    assert all(problem in text for text in problems)
    assert summary(tmp_path / "run")["events"]["verification failed"] == len(problems)
    assert sum(step["responses_without_reward"] for step in metrics) == len(problems)


def test_groups_that_teach_nothing_are_trained_counted_and_shown(recipe: Path, tmp_path: Path) -> None:
    done = train(
        recipe, "--run.directory", tmp_path / "run", "--run.steps", 2, "--rollouts.group_size", 1,
        "--evaluation.prompts", 0,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert summary(tmp_path / "run")["groups_of_equal_reward"] == 8
    assert "8 of 8 groups had equal rewards" in done.stdout


def test_a_disk_that_is_too_small_is_refused(
    recipe: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "1M") as disk:
        assert main(["train", str(recipe), "--run.directory", str(disk / "run")]) == 2
        assert "snapshots and checkpoints of this model need about" in capsys.readouterr().err


def test_a_disk_that_fills_up_stops_the_run_and_it_goes_on_with_space(recipe: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "100M") as disk:
        run, fill = disk / "run", disk / "fill"
        # A disk that others have filled by then has no room for a new file.
        fill.touch()
        process = launch(recipe, "--run.directory", run, "--run.steps", 400, "--evaluation.prompts", 0)
        wait_for_step(run, 3, process)
        with fill.open("r+b", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"0" * 65536)
        _, stderr = end(process)
        assert process.returncode == 1
        assert "No space left" in stderr or "full" in stderr
        assert f"driftproof train --resume {run}" in stderr
        fill.unlink()
        with Ledger(run / "ledger.sqlite") as ledger:
            steps = ledger.step + 5
        done = train("--resume", run, "--run.steps", steps)
        assert done.code == 0, done.stderr
        trained_once(run, steps=steps, groups_per_step=4)


class small_disk:
    """A real, small file system; needs the right to mount one."""

    def __init__(self, path: Path, size: str) -> None:
        self.path, self.size = path, size

    def __enter__(self) -> Path:
        self.path.mkdir()
        if os.geteuid() != 0:
            pytest.skip("mounting a small disk needs root")
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(self.path)], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
        return self.path

    def __exit__(self, *_: object) -> None:
        for _ in range(50):
            if subprocess.run(["umount", str(self.path)], capture_output=True).returncode == 0:
                return
            time.sleep(0.1)


def test_a_server_that_does_not_answer_is_refused_at_the_door(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("--engine.name", "openai", "--engine.url", "http://127.0.0.1:9", "--run.directory", run)
    refused = train("recipes/quickstart.toml", "--model.path", tiny_model_dir, *settings)
    assert refused.code == 1
    assert "no server answers: http://127.0.0.1:9" in refused.stderr
    assert "start it, or correct --engine.url" in refused.stderr
    assert not run.exists()
