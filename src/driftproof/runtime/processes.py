"""What each process of a run does, from its first line to its last.

A process reads the run directory and nothing else. It leaves signals to its parent, writes to its own log, there also
the stacks of its threads when it is asked for them with SIGUSR1, and tells its parent in a sentence what ended it where
there is one. When its parent is gone it asks the run to stop, and ends; nothing goes on unseen.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from driftproof.config import Config
from driftproof.errors import DriftproofError
from driftproof.learner.checkpoint import load_checkpoint
from driftproof.learner.learner import Learner
from driftproof.learner.loop import learn
from driftproof.ledger.leases import Leases, LocalLeases
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import FINISHED, RUNNING, STOPPING
from driftproof.rollout.worker import RolloutWorker
from driftproof.run import RunDirectory, hold_run_lock
from driftproof.runtime.build import (
    make_learner,
    make_trackers,
    make_worker,
    open_engine,
)
from driftproof.runtime.evaluation import evaluate_heldout, heldout_evaluation
from driftproof.runtime.resources import limit_threads
from driftproof.weights.checkpoints import list_checkpoints
from driftproof.weights.snapshots import Publisher, latest

EVALUATOR = "evaluator"
STOP_SECONDS = 120.0
"""How long a clean stop may take before processes are killed."""
STACKS = signal.SIGUSR1
"""Makes a process write the stacks of its threads to its log."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def run_learner(path: Path, name: str, parent: Connection) -> None:
    """Train until the plan is done or the run is asked to stop."""
    with _entered(path, name, parent) as (config, directory):
        _learn(config, directory, worker_name=None)


def run_worker(path: Path, name: str, parent: Connection) -> None:
    """Write groups until the run is no longer running."""
    with _entered(path, name, parent) as (config, directory):
        _write(config, directory, name)


def run_evaluator(path: Path, name: str, parent: Connection) -> None:
    """Evaluate the newest snapshot whenever `evaluation.every` steps have passed; the learner does not wait for it."""
    with _entered(path, name, parent) as (config, directory):
        _evaluate(config, directory)


def run_both(path: Path, name: str, parent: Connection) -> None:
    """The same rollout worker and learner, in turns, in one process: nothing overlaps, every run is repeatable."""
    with _entered(path, name, parent) as (config, directory):
        _learn(config, directory, worker_name="worker-0")


def write_trouble(error: Exception, directory: Path) -> str | None:
    """The sentence for an error of the disk or of the ledger; None for any other."""
    if isinstance(error, sqlite3.OperationalError):
        held = "; a process of the run has held it for a minute" if "locked" in str(error) else ""
        return f"the ledger of {directory} cannot be written: {error}{held}"
    if isinstance(error, sqlite3.DatabaseError):
        return f"the ledger of {directory} is damaged: {error}"
    if isinstance(error, OSError) and (error.errno in _OF_THE_DISK or type(error) is OSError):
        return f"{error.filename or directory} cannot be written: {error.strerror or error}"
    return None


def _write(config: Config, directory: RunDirectory, name: str) -> None:
    limit_threads(config.engine.threads)
    with LocalLeases(directory.ledger) as ledger:
        worker = make_worker(config, directory, ledger, name)
        _wait_for_snapshot(ledger, directory)
        with _renewing(worker, config, directory):
            worker.run()
        worker.close()


def _renewing(worker: RolloutWorker, config: Config, directory: RunDirectory) -> AbstractContextManager[None]:
    # Sooner than the whole run is stopped for a stall.
    return worker.renewing(partial(LocalLeases, directory.ledger), longest_step=config.runtime.stall_seconds / 2)


def _evaluate(config: Config, directory: RunDirectory) -> None:
    limit_threads(config.engine.threads)
    engine = open_engine(config, config.model.path)
    with Ledger(directory.ledger) as ledger, heldout_evaluation(config) as evaluate:
        evaluated = max(ledger.evaluations().get("heldout", {}), default=0)
        while ledger.state() == RUNNING:
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


def _learn(config: Config, directory: RunDirectory, worker_name: str | None) -> None:
    limit_threads(config.learner.threads)
    with Ledger(directory.ledger) as ledger:
        learner = make_learner(config)
        if ledger.step:
            load_checkpoint(list_checkpoints(directory.checkpoints)[-1], learner)
        publisher = Publisher(directory.snapshots, config.model.path, keep=config.learner.keep_snapshots)
        publisher.publish(learner.step, learner.policy.state())
        ledger.published(learner.step)
        # Asked to stop while the model was loaded: that much sooner.
        if learner.step == 0 and ledger.state() == RUNNING:
            _evaluate_heldout(config, directory, ledger, learner)
        trackers = make_trackers(config, directory, ledger)
        worker = make_worker(config, directory, ledger, worker_name) if worker_name else None
        with _renewing(worker, config, directory) if worker else nullcontext():
            learn(
                ledger,
                learner,
                publisher,
                directory.checkpoints,
                directory.skipped,
                trackers,
                worker.work if worker else None,
                # The run's parent notices first: it sees all processes, and asks them for their stacks.
                stall_seconds=config.runtime.start_seconds + config.runtime.stall_seconds,
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


@contextmanager
def _entered(path: Path, name: str, parent: Connection) -> Iterator[tuple[Config, RunDirectory]]:
    """The first lines of a process, and its last."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A handler, unlike SIG_IGN, is not passed on to what a verifier starts.
        signal.signal(number, lambda *_: None)
    directory = RunDirectory(path=path)
    log = os.open(directory.logs / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    faulthandler.register(STACKS, sys.stderr, all_threads=True)
    hold_run_lock(path)
    _end_without_parent()
    threading.Thread(target=_watch_parent, args=(directory.ledger,), daemon=True).start()
    try:
        yield Config.from_toml(directory.config.read_text()), directory
    except (ValueError, OSError, RuntimeError, sqlite3.Error) as error:
        # The log may be on the disk that is full.
        with contextlib.suppress(OSError):
            traceback.print_exc()
        explained = isinstance(error, DriftproofError)
        sentence = str(error) if explained else write_trouble(error, path)
        if sentence:
            parent.send_bytes(sentence.encode())
        sys.exit(1)


def _end_without_parent() -> None:
    """A command that was killed before this process began may have been followed by another."""
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        sys.exit("the command that started this process has ended; so does it")


def _watch_parent(ledger_path: Path) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    try:
        with Ledger(ledger_path) as ledger:
            if ledger.state() != FINISHED:
                ledger.set_state(STOPPING)
        time.sleep(STOP_SECONDS)
    finally:
        # Whatever the main thread waits for: nobody is left to notice.
        os._exit(1)


def _wait_for_snapshot(leases: Leases, directory: RunDirectory) -> None:
    while latest(directory.snapshots) is None and leases.state() == RUNNING:
        time.sleep(0.01)
