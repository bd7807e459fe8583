"""Real grids through the command line, small enough for every test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from driftproof.cli.main import main
from driftproof.errors import ConfigError
from driftproof.lab.grid import planned_cells
from driftproof.lab.runner import read_results, run_grid, settings_hash
from driftproof.lab.settings import LabConfig
from driftproof.metrics.names import ROWS
from tests.runtime.runs import write_recipe

GRID = """
[lab]
staleness = [0]
seeds = [3]
evaluate_every = 1
[[lab.objectives]]
name = "grpo"
[[lab.objectives]]
name = "asympo"
"""
SCORERS = str(Path(__file__).parents[1] / "runtime")
KEYS = {f"given-{name}-age0-lr0.001-seed3" for name in ("grpo", "asympo")}


def write_grid(directory: Path, model: Path) -> Path:
    """A recipe of two runs of four short steps each, whose rewards come from a process of their own."""
    path = write_recipe(directory, model)
    path.write_text(path.read_text() + GRID)
    return path


def rows(directory: Path) -> dict[str, Any]:
    """The rows of the runs that are done, by their keys."""
    return {path.stem: json.loads(path.read_text())["rows"] for path in (directory / "runs").glob("given-*.json")}


@pytest.fixture(autouse=True, scope="module")
def _scorers() -> Iterator[None]:
    """The rewards' functions can be imported, also by processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCORERS)
        patch.setenv("PYTHONPATH", SCORERS, prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def grid(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a grid that nobody disturbed."""
    directory = tmp_path_factory.mktemp("lab")
    recipe = write_grid(directory, tiny_model_dir)
    assert main(["lab", str(recipe), "--lab.directory", str(directory / "grid")]) == 0
    return directory / "grid"


def launch(recipe: Path, directory: Path) -> subprocess.Popen[str]:
    """`driftproof lab`, a run at a time, in a session of its own."""
    arguments = [str(recipe), "--lab.directory", str(directory), "--lab.processes", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "driftproof.cli", "lab", *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def parents(number: int) -> dict[int, int]:
    """The processes of a session that have not ended, with their parents."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, of_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of_session) == number and state not in "ZX":
            found[int(entry.name)] = int(parent)
    return found


def wait_until(condition: Callable[[], object], limit: float = 300) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_grid_ends_with_its_report(grid: Path) -> None:
    assert set(rows(grid)) == KEYS
    assert {path.name for path in grid.iterdir()} == {
        "config.toml",
        "runs",
        "base.json",
        "results.parquet",
        "report.md",
        "accuracy.png",
        "staleness.png",
        "imbalance.png",
    }
    for run in rows(grid).values():
        assert [row["step"] for row in run] == [0, 1, 2, 3, 4]
        assert set(run[0]) == {"step", "accuracy"}
        assert {"loss", "grad_norm", "reward", "age_mean", "health/nll"} < set(run[1])


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_grid_that_was_cut_off_goes_on(how: signal.Signals, grid: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe, directory = write_grid(tmp_path, tiny_model_dir), tmp_path / "grid"
    process = launch(recipe, directory)
    wait_until(lambda: list((directory / "runs").glob("given-*.json")) or process.poll() is not None)
    process.send_signal(how)
    output, _ = process.communicate(timeout=300)
    wait_until(lambda: not parents(process.pid))
    [done] = (directory / "runs").glob("given-*.json")
    changed = done.stat().st_mtime_ns
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "stopped: 1 of 2 runs are done; the same command goes on" in " ".join(output.split())
    assert "Traceback" not in output
    assert "Loading weights" not in output

    assert main(["lab", str(recipe), "--lab.directory", str(directory)]) == 0
    assert done.stat().st_mtime_ns == changed
    assert rows(directory) == rows(grid)


def test_nothing_is_run_again(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (grid / "runs").iterdir()}
    config = LabConfig.load(grid / "config.toml")
    seen: list[tuple[int, int]] = []
    results = run_grid(config, grid, lambda done, total: seen.append((done, total)))
    assert {result.cell.key for result in results} == KEYS
    assert seen[-1] == (2, 2)
    assert {path: path.stat().st_mtime_ns for path in (grid / "runs").iterdir()} == before


@pytest.mark.parametrize("name", ["grpo", "asympo"])
def test_at_age_0_it_is_a_synchronous_run(name: str, grid: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    settings = ["--runtime.mode", "sync", "--objective.name", name, "--run.seed", "3", "--evaluation.prompts", "0"]
    assert main(["train", str(recipe), *settings, "--run.directory", str(tmp_path / "run")]) == 0
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lab = rows(grid)[f"given-{name}-age0-lr0.001-seed3"][1:]
    assert [row["step"] for row in lab] == [step["step"] for step in steps] == [1, 2, 3, 4]
    # Bit for bit: both write a whole step's responses at once, with the same weights and seeds.
    # (With fewer slots than responses a step, their log-probs differ by rounding.)
    for row, step in zip(lab, steps, strict=True):
        measured = {metric: value for metric, value in row.items() if metric != "accuracy"}
        assert {metric: step[metric] for metric in measured} == measured
    assert any(row["grad_norm"] > 0 for row in lab)
    named = {metric for rows_of_section in ROWS.values() for row in rows_of_section for metric in row.names}
    assert set().union(*steps) <= {"step", *named}


def test_a_report_without_running(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = tmp_path / "part"
    (part / "runs").mkdir(parents=True)
    (part / "config.toml").write_bytes((grid / "config.toml").read_bytes())
    assert main(["lab", "report", str(part)]) == 0
    assert "Missing: 2 of 2 runs of the view 'given'." in capsys.readouterr().out
    assert not list(part.glob("*.png"))

    name = "given-grpo-age0-lr0.001-seed3.json"
    (part / "runs" / name).write_bytes((grid / "runs" / name).read_bytes())
    assert main(["lab", "report", str(part)]) == 0
    assert "Missing: 1 of 2 runs of the view 'given'." in capsys.readouterr().out
    assert (part / "accuracy.png").is_file()

    for file in ("report.md", "accuracy.png", "results.parquet"):
        before = (grid / file).read_bytes()
        (grid / file).unlink()
        assert main(["lab", "report", str(grid)]) == 0
        assert (grid / file).read_bytes() == before
    assert "Missing" not in capsys.readouterr().out


def test_one_view_is_seen_while_the_sweep_of_another_is_missing(grid: Path) -> None:
    views = ["--lab.views", '["given", "tuned"]', "--lab.learning_rates", "[1e-3]", "--lab.tuning_seeds", "[9]"]
    config = LabConfig.load(grid / "config.toml", views)
    assert {result.cell.key for result in read_results(config, grid)} == KEYS


def test_a_dry_run_lists_what_would_be_run(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = grid.parent / "recipe.toml"
    before = set(grid.rglob("*"))
    arguments = ["lab", str(recipe), "--dry-run", "--lab.directory"]
    assert main([*arguments, str(tmp_path / "new")]) == 0
    *listed, count = capsys.readouterr().out.splitlines()
    assert set(listed) == KEYS
    assert count == f"2 runs to be made, 0 there already, in {tmp_path / 'new'}"
    assert main([*arguments, str(grid), "--lab.seeds", "[3, 4]"]) == 0
    *listed, count = capsys.readouterr().out.splitlines()
    assert set(listed) == {key.replace("seed3", "seed4") for key in KEYS}
    assert count == f"2 runs to be made, 2 there already, in {grid}"
    sweep = ["--lab.views", '["tuned"]', "--lab.learning_rates", "[1e-3, 1e-2]", "--lab.tuning_seeds", "[9]"]
    assert main([*arguments, str(tmp_path / "new"), *sweep]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "tuning-grpo-age0-lr0.01-seed9" in listed
    assert "tuned-grpo-age0-lr-of-the-sweep-seed3" in listed
    assert set(grid.rglob("*")) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--lab.objectives", '[{name = "grpi"}]'], "unknown objective 'grpi'; did you mean 'grpo'?"),
        (["--lab.objectives", '[{name = "grpo", clip = 1}]'], "unknown field 'clip'"),
        (["--lab.stalenes", "[0]"], "unknown setting 'lab.stalenes'; did you mean 'lab.staleness'?"),
        (["--lab.views", '["tuned"]'], "the view 'tuned' needs learning_rates"),
        (["--evaluation.prompts", "0"], "evaluation.prompts must not be 0"),
        (["--model.path", "nowhere"], "nowhere"),
        (["--lab.schedule", "replay", "--lab.replay", "nowhere"], "nowhere/ledger.sqlite does not exist"),
        (["--engine.name", "openai", "--engine.url", "http://127.0.0.1:1"], "engine.name must be 'embedded'"),
        (["--learner.lr", "2e-3"], None),
        (["--run.steps", "5"], "is the result of other settings than these"),
    ],
)
def test_what_cannot_be_run(
    settings: list[str], message: str | None, grid: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, before = grid.parent / "recipe.toml", (grid / "config.toml").read_bytes()
    code = main(["lab", str(recipe), "--lab.directory", str(grid), "--dry-run", *settings])
    captured = capfd.readouterr()
    # Runs at another learning rate lie beside the others.
    assert code == (0 if message is None else 2)
    assert "Traceback" not in captured.err
    if message is not None:
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert (grid / "config.toml").read_bytes() == before


@pytest.mark.slow
def test_an_objective_of_ones_own_is_found_in_the_working_directory(
    grid: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("from driftproof.objectives import OBJECTIVES\n\nVariant = OBJECTIVES['naive']\n")
    recipe = write_recipe(tmp_path, tiny_model_dir)
    recipe.write_text(recipe.read_text() + GRID.replace("grpo", "mine:Variant"))
    # As the installed command, which does not look there by itself.
    command = [sys.executable, "-P", "-m", "driftproof.cli", "lab", "recipe.toml", "--lab.directory", "grid"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=300).returncode == 0
    other = rows(tmp_path / "grid")
    assert len(other) == 2
    assert other["given-asympo-age0-lr0.001-seed3"] == rows(grid)["given-asympo-age0-lr0.001-seed3"]


def test_results_of_earlier_versions_count() -> None:
    """Settings that came or went since, and that change no number, leave the hash of a run's settings alone."""
    tree = {
        "run": {"name": "smoke", "steps": 40},
        "model": {"path": "models/tiny-qwen3"},
        "task": {"name": "arithmetic", "digits": 2},
        "sampling": {"max_tokens": 5},
        "learner": {"lr": 2e-4},
        "evaluation": {"prompts": 256},
        "lab": {"seeds": [0], "staleness": [0], "objectives": [{"name": "asympo"}]},
    }
    config = LabConfig.model_validate(tree)
    (cell,) = planned_cells(config)
    assert settings_hash(config, cell) == "fb76c466346c84b0"


def test_results_of_other_settings_stay_as_they_are(grid: Path) -> None:
    before = (grid / "config.toml").read_bytes()
    config = LabConfig.load(grid / "config.toml", ["--run.steps", "5"])
    with pytest.raises(ConfigError, match="result of other settings"):
        run_grid(config, grid, lambda done, total: None)
    assert (grid / "config.toml").read_bytes() == before


def test_results_of_another_base_policy_at_the_same_path_are_refused(grid: Path) -> None:
    config = LabConfig.load(grid / "config.toml")
    record = (grid / "base.json").read_text()
    (grid / "base.json").write_text('{"base": "another"}')
    with pytest.raises(ConfigError, match="has results of another base policy"):
        run_grid(config, grid, lambda done, total: None)
    (grid / "base.json").write_text(record)


def test_a_directory_that_cannot_be_written(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    arguments = ["lab", str(write_grid(tmp_path, tiny_model_dir)), "--lab.directory", str(tmp_path / "file" / "grid")]
    assert main(arguments) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_grid_in_words(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe, directory = write_grid(tmp_path, tiny_model_dir), tmp_path / "grid"
    process = launch(recipe, directory)
    wait_until(lambda: list((directory / "runs").glob("given-*.json")) or process.poll() is not None)
    # The fork server's child: the one whose parent has a parent in the session.
    family = parents(process.pid)
    [worker] = [pid for pid, parent in family.items() if family.get(parent) in family]
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "driftproof: a process of the grid was killed" in output
    assert "Traceback" not in output
    wait_until(lambda: not parents(process.pid))
    assert len(read_results(LabConfig.load(directory / "config.toml"), directory)) == 1
