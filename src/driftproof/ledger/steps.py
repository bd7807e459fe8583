"""The learner side of a ledger: take a batch, train it, record the step.

Guarantees: a group is trained in exactly one step of the history that survives, the oldest first; a crash or a resume
makes ready again what its step had taken.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from driftproof.errors import LedgerError
from driftproof.ledger.codec import row_checksum, with_state
from driftproof.ledger.reader import GROUPS, LedgerWriter
from driftproof.ledger.records import RUNNING, STATES
from driftproof.ledger.schema import ROW
from driftproof.ledger.store import damage_told
from driftproof.types import Batch

DISPATCHED_STEP = ROW.index("dispatched_step")
PRUNED_AT_ONCE = 64
"""Steps whose groups are pruned in one transaction, so that nobody waits long for the next."""


class Steps(LedgerWriter):
    """The steps of a ledger on this host.

    Two groups a step; four were committed.

    >>> steps = Steps(path)
    >>> batch = steps.take(2)
    >>> batch.step, batch.ages
    (1, (0, 0))
    >>> steps.finish_step(1, {"loss": 0.5})  # admission moves on
    >>> steps.take(2).ages  # dispatched before step 1, trained by step 2
    (1, 1)
    >>> steps.rewind(1)  # a crash before step 2 was finished: its groups are ready again
    2
    >>> steps.take(3) is None  # too few are ready
    True
    >>> steps.steps()
    [{'step': 1, 'loss': 0.5}]
    """

    def take(self, count: int) -> Batch | None:
        """The `count` oldest ready groups, marked as trained by the next step; None, and only reads, while too few are.

        Raises a LedgerError where that step has its batch already, or a group is no longer what was committed.
        """
        step = self.step + 1
        if self._store.number("SELECT count(*) FROM groups WHERE state = 'trained' AND trained_step = ?", step):
            raise LedgerError(f"step {step} has its batch already; finish_step comes before the next take")
        ready = "SELECT count(*) FROM (SELECT 1 FROM groups WHERE state = 'ready' LIMIT ?)"
        if self._store.number(ready, count) < count:
            return None
        with self._store.transaction(fault="take"):
            rows = list(self._store.rows(f"{GROUPS} WHERE state = 'ready' ORDER BY dispatch LIMIT ?", count))
            groups = tuple(map(self._group, rows))
            taken = [with_state(self._store.checked(row), "trained", step) for row in rows]
            self._store.change_groups(taken, "state", "trained_step")
        dispatched, weights = zip(*(row[DISPATCHED_STEP : DISPATCHED_STEP + 2] for row in taken), strict=True)
        weights_ages = tuple(step - 1 - k for k in weights if k is not None)
        return Batch(step=step, groups=groups, ages=tuple(step - 1 - k for k in dispatched), weights_ages=weights_ages)

    def finish_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record that `step` has updated the weights: admission moves on."""
        text = json.dumps(metrics)
        with self._store.transaction(fault="finish_step"):
            self._store.execute("INSERT INTO steps VALUES (?, ?, ?)", step, text, row_checksum(step, text))
            self._store.set_meta(step=step)

    def published(self, step: int) -> None:
        """Record that the weights of `step` are there for workers to load."""
        with self._store.transaction():
            self._store.set_meta(published_step=step)

    def make_durable(self) -> None:
        """Wait until everything recorded so far survives a loss of power. Called before a checkpoint is named."""
        self._store.execute("PRAGMA synchronous = FULL")
        with self._store.transaction(fault="make_durable"):
            self._store.set_meta(durable_step=self.step)
        self._store.execute("PRAGMA synchronous = NORMAL")

    def rewind(self, step: int) -> int:
        """Go back to the state after `step`: what was trained later becomes ready, leases return to the pool.

        Returns how many groups became ready again. Later steps and evaluations are forgotten. Raises a LedgerError
        where the ledger has not come to `step` yet, or groups that would be needed again are pruned.
        """
        if not 0 <= step <= self.step:
            raise LedgerError(f"cannot go back to step {step}: {self.path} is at step {self.step}")
        if step < self.pruned_step:
            raise LedgerError(
                f"cannot go back to step {step}: in {self.path} what the groups trained up to step {self.pruned_step} "
                "held is pruned; only a checkpoint of that step or a later one can be gone on from"
            )
        with self._store.transaction(fault="rewind"):
            later = self._store.groups("state = 'trained' AND trained_step > ?", step)
            ready = [with_state(row, "ready") for row in later]
            self._store.change_groups(ready, "state", "trained_step")
            self._store.execute("UPDATE groups SET deadline = -1 WHERE state = 'leased'")
            self._store.execute("DELETE FROM steps WHERE step > ?", step)
            self._store.execute("DELETE FROM evaluations WHERE step > ?", step)
            number = self._store.meta_number
            self._store.set_meta(
                state=RUNNING,
                # How far admission has gone, which going back does not undo.
                furthest_step=max(number("furthest_step"), self.step),
                durable_step=min(number("durable_step"), step),
                published_step=min(number("published_step"), step),
                step=step,
            )
        return len(ready)

    def prune(self, step: int) -> int:
        """Forget what the groups trained up to `step` hold (tokens, log-probs, rewards); of how many.

        Their rows stay: all counts, ages and figures are as before. `maintenance.prune.prunable_step` says which step
        is safe; one beyond the newest checkpoint is a LedgerError.
        """
        durable = self._store.meta_number("durable_step")
        if step > durable:
            raise LedgerError(f"cannot prune up to step {step}: the newest checkpoint of {self.path} is of {durable}")
        pruned, between = 0, "state = 'trained' AND trained_step > ? AND trained_step <= ?"
        forget = f"DELETE FROM contents WHERE dispatch IN (SELECT dispatch FROM groups WHERE {between})"
        for low in range(self.pruned_step, step, PRUNED_AT_ONCE):
            high = min(low + PRUNED_AT_ONCE, step)
            with self._store.transaction():
                pruned += self._store.execute(forget, low, high).rowcount
                self._store.set_meta(pruned_step=high)
        return pruned

    def compact(self) -> None:
        """Give the space of what is pruned back to the file system; nobody else may be at work on the ledger."""
        with damage_told(self.path):
            self._store.execute("VACUUM")
            self._store.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def extend(self, steps: int, publish_every: int | None = None) -> None:
        """Set the run's number of steps, and the interval of publishing; a LedgerError below what is dispatched."""
        needed = max(self.step, -(-self._dispatched() // self.plan.groups_per_step))
        if steps < needed:
            raise LedgerError(f"run.steps is {steps}, but groups for {needed} steps are dispatched already")
        every = self.plan.publish_every if publish_every is None else publish_every
        plan = replace(self.plan, steps=steps, publish_every=every)
        with self._store.transaction():
            self._store.set_meta(plan=plan.to_json())
        self._store.plan = plan

    def record_evaluation(self, name: str, step: int, result: Mapping[str, Any]) -> None:
        """Keep an evaluation's result (JSON values); a second one of that name and step replaces the first."""
        row = (name, step, json.dumps(result))
        with self._store.transaction():
            self._store.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)", *row, row_checksum(*row))

    def set_state(self, state: str) -> None:
        """Ask everyone to stop, or say that the run is finished."""
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}")
        with self._store.transaction():
            self._store.set_meta(state=state)
