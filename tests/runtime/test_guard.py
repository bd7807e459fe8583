"""What is wrong with a run's losses, files or surroundings is found, said in a sentence, and nothing is overwritten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from driftproof.ledger.ledger import Ledger
from tests.runtime import runs
from tests.runtime.runs import (
    LIMIT,
    end,
    launch,
    processes,
    summary,
    train,
    trained_once,
    wait_for_step,
    wait_until,
    write_recipe,
)


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(Path(runs.__file__).parent))
    return write_recipe(tmp_path, tiny_model_dir)


def state_of(run: Path) -> dict[str, bytes | int]:
    """Of a run that nobody works on, what a refusal must leave alone."""
    with Ledger(run / "ledger.sqlite") as ledger:
        state: dict[str, bytes | int] = {"step": ledger.step, "trained": ledger.status().trained}
    for part in ("checkpoints", "snapshots", "config.toml"):
        for path in (run / part, *(run / part).rglob("*")):
            if path.is_file():
                state[str(path)] = path.read_bytes()
    return state


def test_losses_that_are_not_finite_stop_the_run_and_a_broken_checkpoint_is_gone_round(
    recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overflow = train(
        recipe, "--run.directory", run, "--run.steps", 12, "--evaluation.prompts", 0,
        "--task.verifier", "scorers:overflows", "--learner.max_skipped", 3, "--learner.checkpoint_every", 1,
    )  # fmt: skip
    assert overflow.code == 1
    assert "3 steps in a row had no finite loss and gradient (learner.max_skipped)" in overflow.stderr
    assert "Traceback" not in overflow.stderr
    assert f"groups in {run / 'skipped'}" in overflow.stderr
    assert f"driftproof train --resume {run}" in overflow.stderr
    with Ledger(run / "ledger.sqlite") as ledger:
        stopped_at = ledger.step
        count, message = ledger.events()["step skipped"]
        assert [step["skipped"] for step in ledger.steps()[-3:]] == [1.0] * 3
    assert count >= 3
    kept = run / "skipped" / f"step-{stopped_at:08d}.jsonl"
    assert str(kept) in message
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert lines
    assert all(1e308 in line["rewards"] and line["not_finite"] for line in lines)

    older, newest = sorted((run / "checkpoints").glob("step-*"))
    assert newest.name == f"step-{stopped_at:08d}"
    broken = newest / "optimizer.safetensors"
    os.truncate(broken, broken.stat().st_size - 1 if broken.stat().st_size > 100 else 0)
    before = state_of(run)
    refused = train("--resume", run, "--task.verifier", "scorers:parity")
    assert refused.code == 2
    assert f"the newest checkpoint is broken: {broken} " in refused.stderr
    assert f"To go on from the one before, {older.name}: mv {newest} {run}/broken-{newest.name}" in refused.stderr
    assert state_of(run) == before
    newest.rename(run / f"broken-{newest.name}")
    resumed = train("--resume", run, "--task.verifier", "scorers:parity", "--learner.max_skipped", 12)
    assert resumed.code == 0, resumed.stderr
    assert f"from step {stopped_at - 1} of 12" in resumed.stdout
    trained_once(run, steps=12, groups_per_step=4)


def test_a_learning_rate_that_makes_infinite_weights_is_said(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    diverged = train(
        recipe, "--run.directory", run, "--run.steps", 12, "--evaluation.prompts", 0, "--learner.lr", 1e39,
        "--runtime.mode", "sync",
    )  # fmt: skip
    assert diverged.code == 1
    assert "made weights that are not finite; they were neither published nor saved" in diverged.stderr
    assert "Traceback" not in diverged.stderr
    assert not list((run / "checkpoints").glob("step-*"))


def test_signals_to_all_again_and_again_are_a_clean_stop_of_the_one_command_on_a_run(
    recipe: Path, tmp_path: Path
) -> None:
    """Signals as a closing terminal, or whatever stops a whole group of processes, sends them."""
    run = tmp_path / "run"
    process = launch(recipe, "--run.directory", run, "--run.steps", 3000, "--evaluation.prompts", 0)
    wait_for_step(run, 3, process)
    pids = processes(run).values()
    assert len(pids) == 2
    second = train("--resume", run)
    assert second.code == 2
    assert "is in use by another driftproof" in second.stderr
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.killpg(process.pid, number)
        time.sleep(0.01)
    _, stderr = end(process)
    assert process.returncode == 1, stderr
    assert "driftproof: stopped at step" in stderr
    with Ledger(run / "ledger.sqlite") as ledger:
        assert (run / "checkpoints" / f"step-{ledger.step:08d}").is_dir(), "a clean stop loses no step"
        assert "worker died" not in ledger.events()
        step = ledger.step
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    resumed = train("--resume", run, "--run.steps", step + 5)
    assert resumed.code == 0, resumed.stderr
    assert f"from step {step} " in resumed.stdout
    trained_once(run, steps=step + 5, groups_per_step=4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_models_are_loaded_is_a_clean_stop(number: int, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(recipe, "--run.directory", run, "--run.steps", 3000)
    wait_until(lambda: (run / "logs" / "learner.log").exists())
    process.send_signal(number)
    _, stderr = end(process)
    assert process.returncode == 1
    assert "driftproof: stopped at step 0 of 3000" in stderr
    assert not processes(run)
    resumed = train("--resume", run, "--run.steps", 5)
    assert resumed.code == 0, resumed.stderr
    trained_once(run, steps=5, groups_per_step=4)


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_any_more_is_a_clean_stop(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(recipe, "--run.directory", run, "--run.steps", 3000, "--evaluation.prompts", 0)
    wait_for_step(run, 3, process)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=LIMIT) == 1
    assert process.stderr is not None
    assert "stopped at step" in process.stderr.read()
    with Ledger(run / "ledger.sqlite") as ledger:
        assert (run / "checkpoints" / f"step-{ledger.step:08d}").is_dir()


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """The directory can be read and not written, even by root."""
    if os.geteuid() != 0:
        pytest.skip("making a directory read-only for root needs root")
    mount = ["mount", "--bind", str(path), str(path)]
    remount = ["mount", "-o", "remount,bind,ro", str(path)]
    for command in (mount, remount):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            subprocess.run(["umount", str(path)], capture_output=True)
            pytest.skip(f"a read-only directory cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], capture_output=True)


def test_a_directory_that_cannot_be_written_is_said(recipe: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    run = place / "run"
    with read_only(place):
        refused = train(recipe, "--run.directory", run)
        assert refused.code == 2
        assert f"run directory {run} cannot be written: Read-only file system" in refused.stderr
    done = train(recipe, "--run.directory", run, "--run.steps", 1, "--evaluation.prompts", 0)
    assert done.code == 0, done.stderr
    with read_only(place):
        refused = train("--resume", run)
        assert refused.code == 2
        assert f"run directory {run} cannot be written: Read-only file system" in refused.stderr


def test_a_directory_that_is_moved_under_a_live_run_is_said(recipe: Path, tmp_path: Path) -> None:
    run, place = tmp_path / "run", tmp_path / "elsewhere"
    process = launch(
        recipe, "--run.directory", run, "--run.steps", 3000, "--evaluation.prompts", 0, "--learner.checkpoint_every", 2
    )
    wait_for_step(run, 3, process)
    pids = processes(run).values()
    run.rename(place)
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert f"driftproof: run directory {run} was removed or moved while the run was working on it" in stderr
    assert "Traceback" not in stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not run.exists()
    with Ledger(place / "ledger.sqlite") as ledger:
        steps = ledger.step + 3
    resumed = train("--resume", place, "--run.steps", steps)
    assert resumed.code == 0, resumed.stderr
    trained_once(place, steps=steps, groups_per_step=4)


@pytest.mark.slow
def test_a_snapshot_that_is_cut_off_under_a_workers_nose_does_not_end_the_run(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(
        recipe, "--run.directory", run, "--run.steps", 600, "--evaluation.prompts", 0, "--rollouts.max_staleness", 30,
    )  # fmt: skip
    wait_for_step(run, 3, process)
    deadline = time.monotonic() + LIMIT
    while True:
        weights = run / "snapshots" / "latest" / "model.safetensors"
        try:
            os.truncate(weights, 1000)
        except FileNotFoundError:
            continue
        with Ledger(run / "ledger.sqlite") as ledger:
            if {"worker died", "snapshot not loaded"} & ledger.events().keys():
                break
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    _, stderr = end(process)
    assert process.returncode == 0, stderr
    assert summary(run)["groups_trained"] == 600 * 4
    trained_once(run, steps=600, groups_per_step=4)
