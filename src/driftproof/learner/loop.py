"""The learner's loop: take a batch, train, publish, record; stop cleanly when asked.

Guarantees: the weights of a step are published before the ledger admits the groups that may be written with them; a
checkpoint is only named once the ledger's record of its steps is durable; a clean stop loses nothing. Weights that are
not finite are neither published nor saved. No wait is without limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from driftproof.errors import DivergenceError, StallError
from driftproof.learner.checkpoint import save_checkpoint
from driftproof.learner.learner import Learner
from driftproof.learner.skipped import save_skipped
from driftproof.ledger.backoff import Backoff
from driftproof.ledger.maintenance.prune import prune
from driftproof.ledger.reader import LedgerReader
from driftproof.ledger.records import RUNNING, STOPPING
from driftproof.ledger.steps import Steps
from driftproof.metrics import names
from driftproof.metrics.collapse import SIGNS_OF_COLLAPSE, CollapseDetector
from driftproof.metrics.trackers import Tracker
from driftproof.types import Batch
from driftproof.weights.checkpoints import list_checkpoints
from driftproof.weights.snapshots import Publisher


def learn(
    ledger: Steps,
    learner: Learner,
    publisher: Publisher,
    checkpoints: Path,
    skipped: Path,
    trackers: list[Tracker],
    while_waiting: Callable[[], object] | None = None,
    *,
    stall_seconds: float,
) -> None:
    """Train until the plan's steps are done or somebody asks to stop.

    `while_waiting` is called again and again while too few groups are ready: without overlap it does the rollout side's
    work; None sleeps. The groups of updates whose loss or gradient is not finite are kept in `skipped`.

    Raises:
        StallError: no new group within `stall_seconds`.
        DivergenceError: `max_skipped` steps in a row without an update, after a checkpoint; or weights that are not
            finite.
    """
    settings, steps = learner.settings, ledger.plan.steps
    skipped_in_a_row = 0
    rollout = _RolloutMeter(ledger)
    detector = CollapseDetector(SIGNS_OF_COLLAPSE if settings.on_collapse != "off" else ())
    for earlier in ledger.steps():
        detector.observe(earlier)
    end_of_step, checkpoint_seconds = time.monotonic(), 0.0
    while learner.step < steps:
        recorded = time.monotonic()
        batch = _wait_for_batch(ledger, stall_seconds, while_waiting)
        if batch is None:
            break
        taken = time.monotonic()
        metrics = learner.train(batch)
        trained = time.monotonic()
        if not learner.finite:
            raise DivergenceError(_diverged(learner, checkpoints))
        if learner.step % settings.publish_every == 0 or learner.step == steps:
            publisher.publish(learner.step, learner.policy.state())
            ledger.published(learner.step)
        now = time.monotonic()
        metrics |= {
            names.RECORD_SECONDS: recorded - end_of_step - checkpoint_seconds,
            names.CHECKPOINT_SECONDS: checkpoint_seconds,
            names.WAIT_SECONDS: taken - recorded,
            names.TRAIN_SECONDS: trained - taken,
            names.PUBLISH_SECONDS: now - trained,
            names.STEP_SECONDS: now - end_of_step,
            **rollout.since_last_step(),
        }
        end_of_step = now
        if learner.skipped:
            kept = save_skipped(skipped, batch, learner.skipped)
            ledger.record_event("step skipped", _what_was_skipped(batch, learner, kept))
        ledger.finish_step(learner.step, metrics)
        for tracker in trackers:
            tracker.log(learner.step, metrics)
        for alarm in detector.observe(metrics):
            ledger.record_event("sign of collapse", f"step {learner.step}: {alarm}")
            if settings.on_collapse == "stop":
                ledger.set_state(STOPPING)
        skipped_in_a_row = skipped_in_a_row + 1 if metrics[names.SKIPPED] == 1 else 0
        if skipped_in_a_row == settings.max_skipped:
            _checkpoint(ledger, learner, checkpoints, settings.keep_groups)
            ledger.set_state(STOPPING)
            raise DivergenceError(
                f"{skipped_in_a_row} steps in a row had no finite loss and gradient (learner.max_skipped), the last of "
                f"them step {learner.step}; everything is saved. Look at their groups in {skipped}, and go on with a "
                "lower --learner.lr, another --objective.name or smaller rewards"
            )
        checkpoint_seconds = 0.0
        if learner.step % settings.checkpoint_every == 0 and learner.step < steps:
            before = time.monotonic()
            _checkpoint(ledger, learner, checkpoints, settings.keep_groups)
            checkpoint_seconds = time.monotonic() - before
    _checkpoint(ledger, learner, checkpoints, settings.keep_groups)


def _wait_for_batch(ledger: Steps, stall_seconds: float, while_waiting: Callable[[], object] | None) -> Batch | None:
    waiting: tuple[float, int] | None = None
    wait = while_waiting or Backoff().pause
    while ledger.state() == RUNNING:
        batch = ledger.take(ledger.plan.groups_per_step)
        if batch is not None:
            return batch
        if waiting is None or time.monotonic() - waiting[0] > stall_seconds:
            status = ledger.status()
            if waiting is not None and status.ready == waiting[1]:
                raise StallError(
                    f"the learner waited {stall_seconds:.0f} s for {ledger.plan.groups_per_step} groups; "
                    f"{status.ready} are ready, {status.leased} are leased; workers: {ledger.workers()}"
                )
            waiting = time.monotonic(), status.ready
        wait()
    return None


def _what_was_skipped(batch: Batch, learner: Learner, path: Path) -> str:
    first = learner.skipped[0]
    groups = sum(len(update.offending) for update in learner.skipped)
    what = f"the loss was {first.loss:g}, the gradient {first.grad_norm:g}"
    if learner.settings.updates_per_step > 1:
        what = f"{len(learner.skipped)} of {learner.settings.updates_per_step} updates; in the first {what}"
    return f"step {batch.step}: {what}; its {groups} groups are in {path}"


def _diverged(learner: Learner, checkpoints: Path) -> str:
    saved = list_checkpoints(checkpoints)
    return (
        f"step {learner.step} made weights that are not finite; they were neither published nor saved. Go on from "
        f"{f'the checkpoint {saved[-1].name}' if saved else 'the start'} with a lower --learner.lr or a smaller "
        "--learner.max_grad_norm"
    )


def _checkpoint(ledger: Steps, learner: Learner, checkpoints: Path, keep_groups: int) -> None:
    ledger.make_durable()
    save_checkpoint(checkpoints, learner)
    if keep_groups:
        prune(ledger, checkpoints, keep_groups)


class _RolloutMeter:
    """The rollout side's work between two steps, from the counters that its workers left in the ledger."""

    def __init__(self, ledger: LedgerReader) -> None:
        self._ledger = ledger
        self._totals = self._read()

    def since_last_step(self) -> dict[str, float]:
        totals = self._read()
        change = {f"rollout/{name}": max(totals[name] - self._totals[name], 0) for name in totals}
        self._totals = totals
        return change

    def _read(self) -> dict[str, float]:
        workers = list(self._ledger.workers().values())
        names = ("busy_seconds", "tokens")
        return {name: float(sum(getattr(worker, name) for worker in workers)) for name in names}
