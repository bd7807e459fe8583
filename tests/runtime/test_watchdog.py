"""A run that stands still says who waits for whom, and goes on where it can; real processes, really stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Status
from driftproof.runtime.watchdog import ANSWER_SECONDS, Reports, Stacks, Standstill, ask_for_stacks, who_waits
from tests.runtime import runs
from tests.runtime.runs import launch, processes, summary, train, trained_once, wait_for_step, write_recipe

NO_CHECKPOINTS = ("--learner.checkpoint_every", 100_000)


@pytest.fixture(autouse=True)
def _scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find `scorers` as a user's module."""
    monkeypatch.syspath_prepend(str(Path(runs.__file__).parent))


def status(step: int, committed: int) -> Status:
    return Status(state="running", step=step, dispatched=committed, leased=0, ready=committed - step, trained=step)


def test_a_standstill_is_the_time_without_anything_new():
    standstill = Standstill(3, 9, stall_seconds=10, start_seconds=100)
    assert standstill.exceeded(status(3, 3), 0, 1000.0) is None
    assert standstill.exceeded(status(3, 3), 0, 1099.0) is None, "until the first step: the limit of the start"
    assert standstill.exceeded(status(3, 3), 1, 1100.0) is None
    assert standstill.exceeded(status(3, 3), 1, 1201.0) == 100
    assert standstill.exceeded(status(4, 9), 1, 1202.0) is None
    assert standstill.exceeded(status(4, 9), 1, 1211.0) is None
    assert standstill.exceeded(status(4, 10), 1, 1213.0) is None, "a group is something new"
    assert standstill.exceeded(status(4, 10), 1, 1224.0) == 10
    assert standstill.exceeded(status(9, 10), 1, 1225.0) is None
    assert standstill.exceeded(status(9, 10), 1, 1300.0) is None, "after the last step: evaluation"


def test_a_worker_is_silent_since_its_last_report():
    reports, old = Reports(), {"tokens": 5}
    reports.started("worker-0", old, 0.0)
    assert reports.silence("worker-0", old, 500.0) == 500
    assert not reports.is_up("worker-0"), "it loads its model; the counters are those of before"
    assert reports.silence("worker-0", {"tokens": 6}, 501.0) == 0
    assert reports.is_up("worker-0")
    assert reports.silence("worker-0", {"tokens": 6}, 530.0) == 29
    assert reports.silence("worker-0", {"tokens": 7}, 531.0) == 0
    reports.started("worker-0", {"tokens": 7}, 600.0)
    assert reports.silence("worker-0", {"tokens": 7}, 900.0) == 300
    assert not reports.is_up("worker-0")
    reports.forgive(900.0)
    assert reports.silence("worker-0", {"tokens": 7}, 901.0) == 1


DUMP = """Thread 0x00007f1 (most recent call first):
  File "/x/driftproof/verify/pool.py", line 9 in _advance

Current thread 0x00007f0 (most recent call first):
  File "/y/torch/nn/functional.py", line 10 in linear
  File "/x/driftproof/runtime/processes.py", line 20 in _pause
  File "/x/driftproof/learner/loop.py", line 30 in _wait_for_batch
  File "/x/driftproof/learner/loop.py", line 40 in learn
"""


@pytest.mark.parametrize(
    ("stopped", "text", "doing"),
    [
        (False, DUMP, "waits for groups (runtime/processes.py:20, _pause)"),
        (True, "", f"was stopped by a signal (SIGSTOP, SIGTSTP); it did not answer within {ANSWER_SECONDS:.0f} s"),
        (False, "Current thread 0x1 (most recent call first):\n  File \"/y/a.py\", line 1 in f\n", "is outside of"),
        (False, DUMP.replace("_wait_for_batch", "xyz").replace("in learn", "in f"), "is busy (runtime/processes.py"),
    ],
)  # fmt: skip
def test_stacks_in_words(stopped: bool, text: str, doing: str):
    assert doing in Stacks(pid=1, stopped=stopped, text=text).doing


def test_who_waits_is_a_line_for_each_process():
    stacks = {
        "learner": Stacks(pid=7, stopped=False, text=DUMP),
        "worker-0": Stacks(pid=8, stopped=True, text=DUMP.replace("_wait_for_batch", "collect")),
    }
    both = Status(state="running", step=4, dispatched=32, leased=4, ready=12, trained=16)
    assert who_waits(stacks, both, 16, {"worker-0": 310.2}).splitlines() == [
        "learner (pid 7) waits for groups (runtime/processes.py:20, _pause): 12 of 16 are ready, 4 are leased",
        "worker-0 (pid 8) was stopped by a signal (SIGSTOP, SIGTSTP); it waits for its engine "
        "(runtime/processes.py:20, _pause); last heard of 310 s ago",
    ]
    assert "no rollout worker of the run's own: 4 groups" in who_waits({"learner": stacks["learner"]}, both, 16, {})


@contextmanager
def asleep(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers like those of a run."""
    code = (
        "import faulthandler, signal, sys, time; from driftproof.runtime.processes import STACKS\n"
        "faulthandler.register(STACKS, sys.stderr, all_threads=True)\n"
        "def collect(): print('up', flush=True); time.sleep(600)\ncollect()"
    )
    with log.open("ab") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=file)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_processes_write_their_stacks_also_when_they_are_stopped(tmp_path: Path):
    (tmp_path / "a.log").write_text("Thread 0x1 (most recent call first):\n  of long ago\n")
    with asleep(tmp_path / "a.log") as first, asleep(tmp_path / "b.log") as second:
        second.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, second.pid, os.WSTOPPED | os.WNOWAIT)
        found = ask_for_stacks({"a": first.pid, "b": second.pid}, tmp_path)
    assert [stacks.stopped for stacks in found.values()] == [False, True]
    for stacks in found.values():
        assert re.search(r"in collect\n", stacks.text)
        assert "long ago" not in stacks.text


def test_a_process_that_is_gone_has_no_stacks(tmp_path: Path):
    with asleep(tmp_path / "a.log") as process:
        pass
    assert ask_for_stacks({"a": process.pid}, tmp_path)["a"].text == ""


def stop(run: Path, name: str) -> int:
    """Stop a process of a run where it is, by the signal; its pid."""
    pid = processes(run)[name]
    os.kill(pid, signal.SIGSTOP)
    return pid


def stands_still(run: Path, process: subprocess.Popen[str]) -> tuple[str, str]:
    """Of a run that ended for a stall: what it said, and the file with the stacks."""
    _, stderr = process.communicate(timeout=200)
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
    assert re.search(r"^learner \(pid \d+\) waits for groups \(.*: \d of 4 are ready, \d are leased", stderr, re.M)
    assert re.search(rf"^worker-0 \(pid {pid}\) was stopped by a signal", stderr, re.M)
    assert re.search(r"in _wait_for_batch\n", stacks)
    assert re.search(r"rollout/worker.py.*in \w+\n", stacks)
    with Ledger(run / "ledger.sqlite") as ledger:
        step = ledger.step
    assert (run / "checkpoints" / f"step-{step:08d}").is_dir(), "the learner was well, and loses nothing"
    goes_on(run)


def test_a_worker_that_is_silent_is_replaced(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(
        write_recipe(tmp_path, tiny_model_dir), "--run.directory", run, "--run.steps", 150, "--evaluation.prompts", 0,
        "--rollouts.workers", 2, "--rollouts.lease_seconds", 2,
    )  # fmt: skip
    wait_for_step(run, 3, process)
    stop(run, "worker-0")
    stdout, stderr = process.communicate(timeout=200)
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
    assert re.search(r"processes.py.*in run_(learner|both)\n", stacks)
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
    deadline = time.monotonic() + 60
    while processes(run):
        assert time.monotonic() < deadline, "orphans are still running"
        time.sleep(0.1)
