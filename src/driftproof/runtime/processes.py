"""The part that each process of a run plays; it reads the run directory and nothing else."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial

from driftproof.config import Config
from driftproof.learner.checkpoint import load_checkpoint
from driftproof.learner.loop import LearnerLoop
from driftproof.ledger.leases import LocalLeases
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import FINISHED, RUNNING
from driftproof.metrics.trackers import open_trackers
from driftproof.rollout.worker import RolloutWorker
from driftproof.run import RunDirectory
from driftproof.runtime.build import make_learner, make_worker, open_engine
from driftproof.runtime.evaluation import heldout_evaluation, record_heldout
from driftproof.runtime.placement.protocol import Resources, Role
from driftproof.runtime.resources import limit_threads
from driftproof.weights.checkpoints import list_checkpoints
from driftproof.weights.snapshots import Publisher, latest

EVALUATES = "evaluates held-out prompts"

Phase = Callable[[str], object]
"""Told by a process, in a few words, whenever it turns to something else."""


def play(role: Role, directory: RunDirectory, name: str, resources: Resources, phase: Phase) -> None:
    """Do all that a process of the run does in its role."""
    phase("begins")
    limit_threads(resources.threads)
    config = Config.from_toml(directory.config.read_text(encoding="utf-8"))
    with Ledger(directory.ledger) as ledger:
        if role is Role.WORKER:
            _write(config, directory, ledger, name, phase)
        elif role is Role.EVALUATOR:
            _evaluate(config, directory, ledger, phase)
        else:
            _learn(config, directory, ledger, phase, worker_name="worker-0" if role is Role.BOTH else None)


def _write(config: Config, directory: RunDirectory, ledger: Ledger, name: str, phase: Phase) -> None:
    worker = make_worker(config, directory, ledger, name, phase)
    phase("waits for the first snapshot")
    while latest(directory.snapshots) is None and ledger.state() == RUNNING:
        time.sleep(0.01)
    with _renewing(worker, config, directory):
        worker.run()
    worker.close()


def _renewing(worker: RolloutWorker, config: Config, directory: RunDirectory) -> AbstractContextManager[None]:
    # Sooner than the whole run is stopped for a stall.
    return worker.renewing(partial(LocalLeases, directory.ledger), longest_step=config.runtime.stall_seconds / 2)


def _evaluate(config: Config, directory: RunDirectory, ledger: Ledger, phase: Phase) -> None:
    """Evaluate the newest snapshot whenever `evaluation.every` steps have passed; the learner does not wait for it."""
    phase("loads its model")
    engine = open_engine(config, config.model.path)
    with heldout_evaluation(config) as evaluate:
        evaluated = max(ledger.evaluations().get("heldout", {}), default=0)
        while ledger.state() == RUNNING:
            snapshot = latest(directory.snapshots)
            # The last step's is the learner's to evaluate.
            if snapshot is None or not evaluated + config.evaluation.every <= snapshot.step < config.run.steps:
                phase("waits for a newer snapshot")
                time.sleep(0.01)
                continue
            phase(EVALUATES)
            # Pruned between our look and our read: there is a newer one.
            with suppress(FileNotFoundError):
                engine.load(snapshot.path)
                ledger.record_evaluation("heldout", snapshot.step, evaluate(engine))
                evaluated = snapshot.step


def _learn(config: Config, directory: RunDirectory, ledger: Ledger, phase: Phase, worker_name: str | None) -> None:
    phase("loads its model")
    learner = make_learner(config)
    if ledger.step:
        load_checkpoint(list_checkpoints(directory.checkpoints)[-1], learner)
    phase("publishes weights")
    publisher = Publisher(directory.snapshots, config.model.path, keep=config.learner.keep_snapshots)
    publisher.publish(learner.step, learner.policy.published())
    ledger.published(learner.step)
    # Asked to stop while the model was loaded: that much sooner.
    if learner.step == 0 and ledger.state() == RUNNING:
        phase(EVALUATES)
        record_heldout(config, directory, ledger, learner)
    trackers = open_trackers(directory.path, ledger.steps(), config.tracking)
    worker = make_worker(config, directory, ledger, worker_name, phase) if worker_name else None
    with _renewing(worker, config, directory) if worker else nullcontext():
        LearnerLoop(
            ledger,
            learner,
            publisher,
            directory.checkpoints,
            directory.skipped,
            trackers,
            worker.work if worker else None,
            # The supervisor notices first: it sees all processes, and asks them for their stacks.
            stall_seconds=config.runtime.start_seconds + config.runtime.stall_seconds,
            max_unscored=config.verify.max_unscored,
            phase=phase,
        ).run()
    if worker:
        worker.close()
    for tracker in trackers:
        tracker.close()
    if learner.step == config.run.steps:
        phase(EVALUATES)
        record_heldout(config, directory, ledger, learner)
        ledger.set_state(FINISHED)
    phase("ends")
