"""The learner's loop: take a batch, train, publish, record; stop cleanly when asked.

Guarantees: the weights of a step are published before the ledger admits the groups that may be written with them; a
checkpoint is only named once the ledger's record of its steps is durable; a clean stop loses nothing. Weights that are
not finite are neither published nor saved. No wait is without limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from driftproof.errors import DivergenceError, RunError, StallError
from driftproof.learner.checkpoint import save_checkpoint
from driftproof.learner.learner import Learner
from driftproof.learner.phases import PHASES
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


@dataclass
class LearnerLoop:
    """Training until the plan's steps are done or somebody asks to stop: `LearnerLoop(...).run()`."""

    ledger: Steps
    learner: Learner
    publisher: Publisher
    checkpoints: Path
    skipped: Path
    """Directory of the groups of updates whose loss or gradient is not finite."""
    trackers: Sequence[Tracker]
    while_waiting: Callable[[], object] | None = None
    """Called again and again while too few groups are ready: the rollout side's work, without overlap; None sleeps."""
    _: KW_ONLY
    stall_seconds: float
    max_unscored: int = 5
    """Steps in a row of which no response could be scored before the run is stopped."""
    phase: Callable[[str], object] = lambda _: None
    """Told in a few words whenever the loop turns to something else."""

    def __post_init__(self) -> None:
        self._detector = CollapseDetector(SIGNS_OF_COLLAPSE if self.learner.settings.on_collapse != "off" else ())
        for earlier in self.ledger.steps():
            self._detector.observe(earlier)
        self._clock = _Clock(self.phase)
        self._counted = _rollout_counters(self.ledger)
        self._skipped_in_a_row = 0
        self._unscored_in_a_row = 0

    def run(self) -> None:
        """Train, publish and save, step by step.

        Raises:
            StallError: no new group within `stall_seconds`.
            RunError: `max_unscored` steps in a row without a response that could be scored, after a checkpoint.
            DivergenceError: `max_skipped` steps in a row without an update, after a checkpoint; or weights that are not
                finite.
        """
        learner, steps = self.learner, self.ledger.plan.steps
        while learner.step < steps and (batch := self._wait_for_batch()):
            self._train(batch)
            if learner.step % learner.settings.checkpoint_every == 0 and learner.step < steps:
                self._checkpoint()
        self._checkpoint()

    def _wait_for_batch(self) -> Batch | None:
        """The next batch; None once the run is to stop."""
        wait, wanted = self.while_waiting or Backoff().pause, self.ledger.plan.groups_per_step
        waiting: tuple[float, int] | None = None
        while self.ledger.state() == RUNNING:
            self._clock.turn_to(names.WAIT_SECONDS)
            if batch := self.ledger.take(wanted):
                return batch
            if waiting is None or time.monotonic() - waiting[0] > self.stall_seconds:
                status = self.ledger.status()
                if waiting is not None and status.ready == waiting[1]:
                    raise StallError(
                        f"the learner waited {self.stall_seconds:.0f} s for {wanted} groups; "
                        f"{status.ready} are ready, {status.leased} are leased; workers: {self.ledger.workers()}"
                    )
                waiting = time.monotonic(), status.ready
            wait()
        return None

    def _train(self, batch: Batch) -> None:
        """Train on a batch, publish the weights where they are due, then record the step: in this order."""
        learner, clock = self.learner, self._clock
        clock.turn_to(names.TRAIN_SECONDS)
        metrics = learner.train(batch)
        if not learner.finite:
            saved = ["the start", *(f"the checkpoint {path.name}" for path in list_checkpoints(self.checkpoints))]
            raise DivergenceError(
                f"step {learner.step} made weights that are not finite; they were neither published nor saved. Go on "
                f"from {saved[-1]} with a lower --learner.lr or a smaller --learner.max_grad_norm"
            )
        clock.turn_to(names.PUBLISH_SECONDS)
        if learner.step % learner.settings.publish_every == 0 or learner.step == self.ledger.plan.steps:
            self.publisher.publish(learner.step, learner.policy.published())
            self.publisher.wait()
            self.ledger.published(self.publisher.published())
        clock.turn_to(names.RECORD_SECONDS)
        counted, self._counted = self._counted, _rollout_counters(self.ledger)
        change = {name: max(count - counted[name], 0) for name, count in self._counted.items()}
        self._record(batch, metrics | clock.lap() | change)

    def _record(self, batch: Batch, metrics: dict[str, Any]) -> None:
        learner, settings = self.learner, self.learner.settings
        if learner.skipped:
            kept = save_skipped(self.skipped, batch, learner.skipped)
            self.ledger.record_event("step skipped", self._what_was_skipped(kept))
        self.ledger.finish_step(learner.step, metrics)
        for tracker in self.trackers:
            tracker.log(learner.step, metrics)
        for alarm in self._detector.observe(metrics):
            self.ledger.record_event("sign of collapse", f"step {learner.step}: {alarm}")
            if settings.on_collapse == "stop":
                self.ledger.set_state(STOPPING)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if metrics[names.SKIPPED] == 1 else 0
        if self._skipped_in_a_row == settings.max_skipped:
            self._checkpoint()
            self.ledger.set_state(STOPPING)
            raise DivergenceError(
                f"{self._skipped_in_a_row} steps in a row had no finite loss and gradient (learner.max_skipped), the "
                f"last of them step {learner.step}; everything is saved. Look at their groups in {self.skipped}, and "
                "go on with a lower --learner.lr, another --objective.name or smaller rewards"
            )
        self._check_scored(batch, metrics)

    def _check_scored(self, batch: Batch, metrics: Mapping[str, Any]) -> None:
        """Stop a run that no longer learns, for nothing that it writes can be scored."""
        unscored = metrics[names.RESPONSES_WITHOUT_REWARD] + metrics[names.RESPONSES_BREAKING_VERIFIER]
        self._unscored_in_a_row = self._unscored_in_a_row + 1 if unscored == metrics[names.RESPONSES] else 0
        if self._unscored_in_a_row == min(self.max_unscored, self.ledger.plan.steps):
            self._checkpoint()
            self.ledger.set_state(STOPPING)
            last = next((problem for group in batch.groups for problem in group.problems if problem), "none was given")
            raise RunError(
                f"none of the responses of {self._unscored_in_a_row} steps in a row could be scored "
                f"(verify.max_unscored), the last of them step {self.learner.step}; everything is saved. What went "
                f"wrong: {last}. Mend the verifier, or what it needs, and go on"
            )

    def _checkpoint(self) -> None:
        """Save the learner's state, once the ledger's record of its steps is durable."""
        self._clock.turn_to(names.CHECKPOINT_SECONDS)
        self.ledger.make_durable()
        save_checkpoint(self.checkpoints, self.learner)
        if keep_groups := self.learner.settings.keep_groups:
            prune(self.ledger, self.checkpoints, keep_groups)

    def _what_was_skipped(self, path: Path) -> str:
        skipped, updates = self.learner.skipped, self.learner.settings.updates_per_step
        groups = sum(len(update.offending) for update in skipped)
        what = f"the loss was {skipped[0].loss:g}, the gradient {skipped[0].grad_norm:g}"
        if updates > 1:
            what = f"{len(skipped)} of {updates} updates; in the first {what}"
        return f"step {self.learner.step}: {what}; its {groups} groups are in {path}"


class _Clock:
    """Seconds of each phase since the last lap; a lap ends where a step is recorded."""

    def __init__(self, phase: Callable[[str], object]) -> None:
        self._phase = phase
        self._since = time.monotonic()
        self._current: str = names.RECORD_SECONDS
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def turn_to(self, metric: str) -> None:
        """End a phase and begin another, named by the metric that counts its time."""
        now = time.monotonic()
        self._seconds[self._current] += now - self._since
        self._since, self._current = now, metric
        self._phase(PHASES[metric])

    def lap(self) -> dict[str, float]:
        """The metrics of the lap that ends with the phase before the current one."""
        lap = self._seconds | {names.STEP_SECONDS: sum(self._seconds.values())}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return lap


def _rollout_counters(ledger: LedgerReader) -> dict[str, float]:
    """The rollout side's work so far, as its workers left it in the ledger."""
    workers = ledger.workers().values()
    return {
        names.BUSY_SECONDS: float(sum(worker.busy_seconds for worker in workers)),
        names.ROLLOUT_TOKENS: float(sum(worker.tokens for worker in workers)),
    }
