"""What each process of a run does, from its first line to its last.

A process reads the run directory and nothing else. It leaves Ctrl-C to its parent, writes to its own log, and when its
parent is gone it asks the run to stop, so that nothing goes on unseen.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import tomllib
from pathlib import Path

from driftproof.config import Config
from driftproof.learner import Learner, learn, list_checkpoints, load_checkpoint
from driftproof.ledger import FINISHED, RUNNING, STOPPING, Ledger
from driftproof.runtime.assembly import (
    RunDirectory,
    evaluate_heldout,
    heldout_evaluation,
    limit_threads,
    make_cadence,
    make_learner,
    make_trackers,
    make_worker,
    open_engine,
)
from driftproof.weights import Publisher, latest

POLL_SECONDS = 0.001
EVALUATOR = "evaluator"


def run_learner(path: Path) -> None:
    """Train until the plan is done or the run is asked to stop."""
    config, directory = _enter(path, "learner")
    _learn(config, directory, worker_name=None)


def run_worker(path: Path, name: str) -> None:
    """Write groups until the run is no longer running."""
    config, directory = _enter(path, name)
    limit_threads(config.engine.threads)
    with Ledger(directory.ledger) as ledger:
        worker = make_worker(config, directory, ledger, name)
        _wait_for_snapshot(ledger, directory)
        worker.run(pause_seconds=POLL_SECONDS)
        worker.close()


def run_evaluator(path: Path) -> None:
    """Evaluate the newest snapshot whenever `evaluation.every` steps have passed; the learner does not wait for it."""
    config, directory = _enter(path, EVALUATOR)
    limit_threads(config.engine.threads)
    engine = open_engine(config, config.model.path)
    with Ledger(directory.ledger) as ledger, heldout_evaluation(config) as evaluate:
        evaluated = max(ledger.evaluations().get("heldout", {}), default=0)
        while ledger.state == RUNNING:
            snapshot = latest(directory.snapshots)
            # The last step's is the learner's to evaluate.
            if snapshot is None or not evaluated + config.evaluation.every <= snapshot.step < config.run.steps:
                time.sleep(0.01)
                continue
            # Pruned between our look and our read: there is a newer one.
            with contextlib.suppress(FileNotFoundError):
                engine.load(snapshot.path)
                ledger.record_evaluation("heldout", snapshot.step, evaluate(engine))
                evaluated = snapshot.step


def run_both(path: Path) -> None:
    """The same rollout worker and learner, in turns, in one process: nothing overlaps, every run is repeatable."""
    config, directory = _enter(path, "learner")
    _learn(config, directory, worker_name="worker-0")


def _learn(config: Config, directory: RunDirectory, worker_name: str | None) -> None:
    limit_threads(config.learner.threads)
    with Ledger(directory.ledger) as ledger:
        learner = make_learner(config)
        if ledger.step:
            load_checkpoint(list_checkpoints(directory.checkpoints)[-1], learner)
        publisher = Publisher(directory.snapshots, config.model.path, keep=config.learner.keep_snapshots)
        publisher.publish(learner.step, learner.policy.model.state_dict())
        if learner.step == 0:
            _evaluate_heldout(config, directory, ledger, learner)
        trackers = make_trackers(config, directory, ledger)
        worker = make_worker(config, directory, ledger, worker_name) if worker_name else None
        learn(
            ledger,
            learner,
            publisher,
            directory.checkpoints,
            trackers,
            make_cadence(config),
            while_waiting=worker.work if worker else _pause,
            on_collapse=config.learner.on_collapse,
        )
        if worker:
            worker.close()
        for tracker in trackers:
            tracker.close()
        if learner.step == config.run.steps:
            _evaluate_heldout(config, directory, ledger, learner)
            ledger.set_state(FINISHED)


def _evaluate_heldout(config: Config, directory: RunDirectory, ledger: Ledger, learner: Learner) -> None:
    """Record how the newest snapshot does on held-out prompts (recorded traces: how likely it finds them)."""
    name, result = evaluate_heldout(config, directory, learner)
    if result:
        ledger.record_evaluation(name, learner.step, result)


def _enter(path: Path, name: str) -> tuple[Config, RunDirectory]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    directory = RunDirectory(path=path)
    log = os.open(directory.logs / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    threading.Thread(target=_watch_parent, args=(directory.ledger,), daemon=True).start()
    return Config.model_validate(tomllib.loads(directory.config.read_text())), directory


def _watch_parent(ledger_path: Path) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    with Ledger(ledger_path) as ledger:
        if ledger.state != FINISHED:
            ledger.set_state(STOPPING)


def _wait_for_snapshot(ledger: Ledger, directory: RunDirectory) -> None:
    while latest(directory.snapshots) is None and ledger.state == RUNNING:
        time.sleep(0.01)


def _pause() -> None:
    time.sleep(POLL_SECONDS)
