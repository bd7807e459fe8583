"""The rollout side of a ledger: lease a prompt, write its group, commit it.

    leased --commit--> ready --take--> trained
      |  ^                ^               |
      +--+ deadline       +--- rewind ----+

Guarantees: every dispatch number is given out once and holds one prompt for ever; a lease whose worker dies returns to
the pool; a group is committed once. The data's age is counted in the ledger and nowhere else.
"""

import time
from collections.abc import Collection, Mapping
from typing import Protocol

from driftproof.errors import GroupError
from driftproof.ledger.codec import content_checksum, figures_of, to_row, with_state
from driftproof.ledger.reader import LedgerWriter
from driftproof.ledger.records import RUNNING, Counters, Lease, Plan
from driftproof.ledger.schema import ROW
from driftproof.ledger.store import channel_problem
from driftproof.types import Group

FIGURES = ROW[ROW.index("responses") :]


class Leases(Protocol):
    """All that a rollout worker asks for."""

    @property
    def plan(self) -> Plan: ...

    def state(self) -> str: ...

    def lease(self, worker: str, count: int, seconds: float) -> list[Lease]:
        """Up to `count` groups to write within so many seconds; [] when none is admitted now."""

    def renew(self, worker: str, dispatches: Collection[int], seconds: float, counters: Counters) -> None:
        """Move the deadlines of the leases that a living worker knows of, and replace its counters."""

    def commit(self, worker: str, groups: Mapping[int, Group], counters: Counters) -> int:
        """Record written groups by dispatch number, and replace the worker's counters; how many were accepted."""

    def record_event(self, kind: str, message: str) -> None: ...


class LocalLeases(LedgerWriter):
    """The leases of a ledger on this host.

    Two groups a step, and the rollout side may be one step ahead: four are admitted before the first step, and two more
    with every step.

    >>> leases = LocalLeases(path)
    >>> [lease.dispatch for lease in leases.lease("worker", count=3, seconds=60)]
    [0, 1, 2]
    >>> [lease.dispatch for lease in leases.lease("other", count=3, seconds=60)]
    [3]
    >>> leases.lease("other", count=3, seconds=60)  # not before the learner has done a step
    []
    >>> leases.commit("worker", {0: write(0), 1: write(1)}, Counters(groups=2))
    2
    >>> leases.commit("worker", {1: write(1)}, Counters(groups=2))  # a second time counts for nothing
    0
    >>> leases.release("worker")  # it died: its last lease goes to whoever asks next
    1
    >>> [lease.dispatch for lease in leases.lease("other", count=3, seconds=60)]
    [2]
    """

    def lease(self, worker: str, count: int, seconds: float) -> list[Lease]:
        """Expired leases first, then new dispatches as far as `Plan.admitted`; only reads where there are none."""
        now = time.monotonic()
        if count < 1 or not self._leasable(now):
            return []
        store = self._store
        with store.transaction(fault="lease"):
            state, step, published_step = self._moment()
            if state != RUNNING:
                return []
            dispatched, admitted = self._dispatched(), self.plan.admitted(step, published_step)
            weights_step = self.plan.newest_weights(step, published_step)
            question = "SELECT dispatch FROM groups WHERE state = 'leased' AND deadline < ? ORDER BY dispatch LIMIT ?"
            expired = [dispatch for (dispatch,) in store.rows(question, now, count)]
            fresh = range(dispatched, min(admitted, dispatched + count - len(expired)))
            leases = [Lease(dispatch=n, prompt_index=self.prompt_of(n)) for n in [*expired, *fresh]]
            lent = ("leased", worker, step, weights_step, *(None,) * 9)
            store.write_groups(((each.dispatch, each.prompt_index, *lent) for each in leases), deadline=now + seconds)
            if expired:
                store.add_event("lease expired", f"groups {expired} given to {worker}")
        return leases

    def renew(self, worker: str, dispatches: Collection[int], seconds: float, counters: Counters) -> None:
        """Move the deadlines of a worker's leases; one that was released is no longer its own, and one that it does not
        name is left to expire: its answer to `lease` may have been lost."""
        held = "dispatch = ? AND state = 'leased' AND worker = ? AND deadline >= 0"
        update = f"UPDATE groups SET deadline = ? WHERE {held}"
        deadline = time.monotonic() + seconds
        with self._store.transaction():
            self._store.database.executemany(update, [(deadline, dispatch, worker) for dispatch in dispatches])
            self._store.set_counters(worker, counters)

    def release(self, worker: str | None = None) -> int:
        """Return the leases of a dead worker (None: of all workers) to the pool; how many there were."""
        leased = "state = 'leased' AND deadline >= 0 AND worker = coalesce(?, worker)"
        with self._store.transaction():
            return self._store.execute(f"UPDATE groups SET deadline = -1 WHERE {leased}", worker).rowcount

    def commit(self, worker: str, groups: Mapping[int, Group], counters: Counters | None = None) -> int:
        """Record written groups by dispatch number, and replace the worker's counters; how many were accepted.

        A group whose lease has passed to another worker, or that is committed already, is not accepted and counted as
        an event; one of another prompt, or without exactly the planned channels, is a GroupError.
        """
        contents, figures = {}, {}
        for dispatch, group in groups.items():
            self._check(dispatch, group)
            content = contents[dispatch] = (dispatch, *to_row(group))
            figures[dispatch] = (*figures_of(group), content_checksum(content[1:]))
        bounds = min(groups, default=0), max(groups, default=-1)
        with self._store.transaction(fault="commit"):
            leased = self._store.groups("state = 'leased' AND worker = ? AND dispatch BETWEEN ? AND ?", worker, *bounds)
            accepted = {row[0]: with_state(row, "ready") for row in leased if row[0] in groups}
            written = [(*row[: -len(FIGURES)], *figures[n]) for n, row in accepted.items()]
            self._store.change_groups(written, "state", *FIGURES)
            self._store.write_contents([contents[n] for n in accepted])
            if late := len(groups) - len(accepted):
                self._store.add_event("late commit", f"{late} groups of {worker}, whose leases had expired")
            if counters is not None:
                self._store.set_counters(worker, counters)
        return len(accepted)

    def holds(self, worker: str, dispatch: int) -> bool:
        """Whether a worker holds the lease of a group."""
        leased = "SELECT EXISTS (SELECT 1 FROM groups WHERE dispatch = ? AND state = 'leased' AND worker = ?)"
        return bool(self._store.number(leased, dispatch, worker))

    def report_worker(self, worker: str, counters: Counters) -> None:
        """Replace a worker's counters."""
        with self._store.transaction():
            self._store.set_counters(worker, counters)

    def _leasable(self, now: float) -> bool:
        """Whether a lease could be given; reads little, and locks nobody out."""
        state, step, published_step = self._moment()
        expired = "SELECT EXISTS (SELECT 1 FROM groups WHERE state = 'leased' AND deadline < ?)"
        return state == RUNNING and (
            self._dispatched() < self.plan.admitted(step, published_step) or bool(self._store.number(expired, now))
        )

    def _moment(self) -> tuple[str, int, int]:
        """The run's state, the learner's step and the step of the newest snapshot."""
        header = self._store.header("state", "step", "published_step")
        return header["state"], int(header["step"]), int(header["published_step"])

    def _check(self, dispatch: int, group: Group) -> None:
        if group.prompt_index != (prompt := self.prompt_of(dispatch)):
            raise GroupError(f"dispatch {dispatch} is prompt {prompt}, the group is of prompt {group.prompt_index}")
        if problem := channel_problem(self.plan, group):
            raise GroupError(f"prompt {group.prompt_index}: {problem}")
