"""A run that stands still says who waits for whom, and goes on where it can; real processes, really stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Counters, Status
from driftproof.runtime.activity import Activity
from driftproof.runtime.watchdog import Examined, Heartbeats, Watchdog, who_waits, write_stacks
from tests.runtime import runs
from tests.runtime.runs import LIMIT, end, launch, processes, summary, train, trained_once, wait_for_step, write_recipe

NO_CHECKPOINTS = ("--learner.checkpoint_every", 100_000)


@pytest.fixture(autouse=True)
def _scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find `scorers` as a user's module."""
    monkeypatch.syspath_prepend(str(Path(runs.__file__).parent))


def status(step: int, committed: int) -> Status:
    return Status(state="running", step=step, dispatched=committed, leased=0, ready=committed - step, trained=step)


def test_a_standstill_is_the_time_without_anything_new():
    watchdog = Watchdog(3, 9, stall_seconds=10, start_seconds=100)
    assert watchdog.exceeded(status(3, 3), 0, 1000.0) is None
    assert watchdog.exceeded(status(3, 3), 0, 1099.0) is None, "until the first step: the limit of the start"
    assert watchdog.exceeded(status(3, 3), 1, 1100.0) is None
    assert watchdog.exceeded(status(3, 3), 1, 1201.0) == 100
    assert watchdog.exceeded(status(4, 9), 1, 1202.0) is None
    assert watchdog.exceeded(status(4, 9), 1, 1211.0) is None
    assert watchdog.exceeded(status(4, 10), 1, 1213.0) is None, "a group is something new"
    assert watchdog.exceeded(status(4, 10), 1, 1224.0) == 10
    assert watchdog.exceeded(status(9, 10), 1, 1225.0) is None
    assert watchdog.exceeded(status(9, 10), 1, 1300.0) is None, "after the last step: evaluation"
    watchdog.reset(1320.0)
    assert watchdog.exceeded(status(9, 10), 1, 1400.0) is None, "somebody was started again"


def test_a_worker_is_silent_since_its_last_report():
    heartbeats, old = Heartbeats(), Counters(tokens=5)
    heartbeats.started("worker-0", old, 0.0)
    assert heartbeats.silence("worker-0", old, 500.0) == 500
    assert not heartbeats.is_up("worker-0"), "it loads its model; the counters are those of before"
    assert heartbeats.silence("worker-0", Counters(tokens=6), 501.0) == 0
    assert heartbeats.is_up("worker-0")
    assert heartbeats.silence("worker-0", Counters(tokens=6), 530.0) == 29
    assert heartbeats.silence("worker-0", Counters(tokens=7), 531.0) == 0
    heartbeats.started("worker-0", Counters(tokens=7), 600.0)
    assert heartbeats.silence("worker-0", Counters(tokens=7), 900.0) == 300
    assert not heartbeats.is_up("worker-0")
    heartbeats.reset(900.0)
    assert heartbeats.silence("worker-0", Counters(tokens=7), 901.0) == 1


def examined(name: str, phase: str, *, paused: bool = False, silence: float | None = None) -> Examined:
    activity = Activity(phase=phase, since=88.4)
    return Examined(
        name=name, where="pid 7", paused=paused, activity=activity, silence=silence, stacks=f"{name}'s stacks"
    )


def test_who_waits_is_a_line_for_each_process(tmp_path: Path):
    learner = examined("learner", "waits for groups")
    worker = examined("worker-0", "waits for its engine", paused=True, silence=310.2)
    both = Status(state="running", step=4, dispatched=32, leased=4, ready=12, trained=16)
    summary = who_waits([learner, worker], 100.0, both, 16)
    assert summary.splitlines() == [
        "learner (pid 7) waits for groups (for 12 s): 12 of 16 are ready, 4 are leased",
        "worker-0 (pid 7) was stopped by a signal (SIGSTOP, SIGTSTP); it waits for its engine (for 12 s); "
        "last heard of 310 s ago",
    ]
    assert "no rollout worker of the run's own: 4 groups" in who_waits([learner], 100.0, both, 16)
    write_stacks(tmp_path / "stall.txt", summary, [learner, worker])
    assert (tmp_path / "stall.txt").read_text().endswith("worker-0 (pid 7)\nworker-0's stacks\n")


def test_only_a_learner_that_can_go_on_waits_for_groups():
    assert examined("learner", "waits for groups").waits_for_groups
    assert not examined("learner", "waits for groups", paused=True).waits_for_groups
    assert not examined("learner", "trains a step").waits_for_groups


def stop(run: Path, name: str) -> int:
    """Stop a process of a run where it is, by the signal; its pid."""
    pid = processes(run)[name]
    os.kill(pid, signal.SIGSTOP)
    return pid


def stands_still(run: Path, process: subprocess.Popen[str]) -> tuple[str, str]:
    """Of a run that ended for a stall: what it said, and the file with the stacks."""
    _, stderr = end(process)
    assert process.returncode == 1
    assert stderr.startswith("driftproof: the run stands still at step ")
    assert f"driftproof train --resume {run}" in stderr
    assert not processes(run)
    with Ledger(run / "ledger.sqlite") as ledger:
        count, message = ledger.events()["stall"]
    assert count == 1
    (written,) = (run / "logs").glob("stall-*.txt")
    assert str(written) in stderr
    assert str(written) in message
    return stderr, written.read_text()


def goes_on(run: Path) -> None:
    with Ledger(run / "ledger.sqlite") as ledger:
        steps = ledger.step + 10
    resumed = train("--resume", run, "--run.steps", steps, "--runtime.stall_seconds", 600)
    assert resumed.code == 0, resumed.stderr
    trained_once(run, steps=steps, groups_per_step=4)


def test_a_worker_that_is_stopped_is_a_stall_that_is_explained(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(
        write_recipe(tmp_path, tiny_model_dir), "--run.directory", run, "--run.steps", 3000, "--evaluation.prompts", 0,
        "--runtime.stall_seconds", 6, *NO_CHECKPOINTS,
    )  # fmt: skip
    wait_for_step(run, 3, process)
    pid = stop(run, "worker-0")
    stderr, stacks = stands_still(run, process)
    assert "no step was finished and no group committed for 6 s" in stderr
    assert re.search(
        r"^learner \(pid \d+\) waits for groups \(for \d+ s\): \d of 4 are ready, \d are leased", stderr, re.M
    )
    assert re.search(rf"^worker-0 \(pid {pid}\) was stopped by a signal .*; it .* \(for \d+ s\)", stderr, re.M)
    assert re.search(r"learner/loop.py.*in \w+\n", stacks)
    assert re.search(r"rollout/worker.py.*in \w+\n", stacks)
    with Ledger(run / "ledger.sqlite") as ledger:
        step = ledger.step
    assert (run / "checkpoints" / f"step-{step:08d}").is_dir(), "the learner was well, and loses nothing"
    goes_on(run)


@pytest.mark.slow
def test_a_worker_that_is_silent_is_replaced(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(
        write_recipe(tmp_path, tiny_model_dir), "--run.directory", run, "--run.steps", 150, "--evaluation.prompts", 0,
        "--rollouts.workers", 2, "--rollouts.lease_seconds", 2,
    )  # fmt: skip
    wait_for_step(run, 3, process)
    stop(run, "worker-0")
    stdout, stderr = end(process)
    assert process.returncode == 0, stderr
    events = summary(run)["events"]
    assert events["worker silent"] == events["worker died"] >= 1
    assert re.search(r"worker-0 had not reported for \d s and is killed; it was stopped by a signal", stdout)
    trained_once(run, steps=150, groups_per_step=4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_learner_that_is_stopped_is_a_stall(mode: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(
        write_recipe(tmp_path, tiny_model_dir), "--run.directory", run, "--run.steps", 3000, "--evaluation.prompts", 0,
        "--runtime.stall_seconds", 6, "--runtime.mode", mode,
    )  # fmt: skip
    wait_for_step(run, 3, process)
    stop(run, "learner")
    stderr, stacks = stands_still(run, process)
    assert re.search(r"^learner \(pid \d+\) was stopped by a signal", stderr, re.M)
    assert ("worker-0 (pid" in stderr) == (mode == "async")
    assert re.search(r"processes.py.*in _learn\n", stacks)
    goes_on(run)


@pytest.mark.slow
def test_a_start_that_takes_too_long_is_a_stall(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(
        write_recipe(tmp_path, tiny_model_dir), "--run.directory", run, "--run.steps", 20, "--runtime.start_seconds",
        0.01, "--runtime.stall_seconds", 60,
    )  # fmt: skip
    stderr, _ = stands_still(run, process)
    assert "at step 0 of 20" in stderr
    resumed = train("--resume", run, "--runtime.start_seconds", 600)
    assert resumed.code == 0, resumed.stderr
    trained_once(run, steps=20, groups_per_step=4)


@pytest.mark.slow
def test_orphans_of_a_stopped_learner_do_not_stay(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Without their parent, workers end; a learner that hangs is made to go on, and then ends too."""
    run = tmp_path / "run"
    process = launch(
        write_recipe(tmp_path, tiny_model_dir), "--run.directory", run, "--run.steps", 3000, "--evaluation.prompts", 0
    )
    wait_for_step(run, 3, process)
    learner = stop(run, "learner")
    process.kill()
    process.wait()
    os.kill(learner, signal.SIGCONT)
    deadline = time.monotonic() + LIMIT
    while processes(run):
        assert time.monotonic() < deadline, "orphans are still running"
        time.sleep(0.1)
