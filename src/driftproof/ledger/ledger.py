"""The durable record of a run's groups, steps and metrics, shared by all its processes.

    leased --commit--> ready --take--> trained
      |  ^                ^               |
      +--+ deadline       +--- rewind ----+

Guarantees: every dispatch number is given out once and holds one prompt for ever; a lease whose worker dies returns to
the pool; a group is committed once and trained in exactly one step of the history that survives. Every event is one
transaction. The data's age is counted here and nowhere else.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from driftproof.faults import durable_write
from driftproof.ledger.order import PromptOrder
from driftproof.ledger.schema import CONTENT, FORMAT_VERSION, SCHEMA, from_row, to_row
from driftproof.types import Batch, Channel, Group, GroupError

RUNNING, STOPPING, FINISHED = "running", "stopping", "finished"


class LedgerError(RuntimeError):
    """The ledger cannot be opened or used as asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run set out to do; written once, when the ledger is made."""

    seed: int
    """Of the prompt permutations."""
    prompts: int
    """Prompts in the task's training split."""
    groups_per_step: int
    max_staleness: int
    """Steps the rollout side may be ahead of the learner; 0 is synchronous. This bounds how many groups are dispatched:
    a slow group is overtaken, not thrown away, and may be older than this when it is trained."""
    steps: int
    """Optimizer steps of the whole run; no group is dispatched beyond them."""
    channels: frozenset[Channel] = frozenset()
    """Exactly the channels that every group must carry."""
    model: str = ""
    """Fingerprint of the model's configuration and tokenizer."""
    recorded_prompts: int = 0
    """Prompts of recorded groups beside those of the task; their indices follow those of the task."""
    recorded_share: float = 0.0
    """Of the dispatches, how many get a recorded prompt (see `PromptOrder`); 0 without recorded prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write one group, until the deadline."""

    dispatch: int
    prompt_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The run at one moment."""

    state: str
    """running, stopping or finished."""
    step: int
    """Optimizer steps done."""
    dispatched: int
    leased: int
    ready: int
    trained: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A committed group with what the ledger knows of it."""

    dispatch: int
    state: str
    worker: str
    dispatched_step: int
    trained_step: int | None
    group: Group

    @property
    def age(self) -> int | None:
        """Learner updates between dispatch and training; None before it is trained.

        Below 0 in one case: the group was dispatched in a step that a resume undid, and is trained earlier now.
        """
        return None if self.trained_step is None else self.trained_step - 1 - self.dispatched_step


class Ledger:
    """One process's connection. Use one per process; SQLite arbitrates between them."""

    def __init__(self, path: Path) -> None:
        """Open an existing ledger.

        Raises:
            LedgerError: no ledger there, or one of another format.
        """
        if not path.is_file():
            raise LedgerError(f"{path} does not exist; the directory is not a run")
        self.path = path
        try:
            self._database = _connect(path)
            meta = dict(self._database.execute("SELECT key, value FROM meta"))
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{path} is not a driftproof ledger ({error})") from error
        if meta.get("format_version") != str(FORMAT_VERSION):
            raise LedgerError(
                f"{path} has ledger format {meta.get('format_version')}; this driftproof reads {FORMAT_VERSION}"
            )
        fields = json.loads(meta["plan"])
        self.plan = plan = Plan(**fields | {"channels": frozenset(map(Channel, fields["channels"]))})
        self._order = PromptOrder(plan.seed, plan.prompts, plan.recorded_prompts, plan.recorded_share)

    @classmethod
    def create(cls, path: Path, plan: Plan) -> Self:
        """Make a new ledger.

        Raises:
            LedgerError: there is one already, or the plan cannot be carried out.
        """
        if path.exists():
            raise LedgerError(f"{path} exists already; use --resume to go on with that run")
        if min(plan.prompts, plan.groups_per_step, plan.steps) < 1 or plan.max_staleness < 0:
            raise LedgerError(
                f"a run needs prompts, groups per step and steps above 0 and a staleness from 0; got {plan}"
            )
        if not 0 <= plan.recorded_share < 1 or (plan.recorded_share > 0) != (plan.recorded_prompts > 0):
            raise LedgerError(f"recorded prompts and a share of them, above 0 and below 1, belong together; got {plan}")
        # A reader must never see a ledger without its tables.
        partial = path.with_suffix(".partial")
        for left_behind in path.parent.glob(f"{partial.name}*"):
            left_behind.unlink()
        database = _connect(partial)
        fields = {name: getattr(plan, name) for name in Plan.__dataclass_fields__} | {"channels": sorted(plan.channels)}
        meta = {"format_version": FORMAT_VERSION, "plan": json.dumps(fields), "state": RUNNING, "step": 0}
        try:
            database.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
            database.executemany("INSERT INTO meta VALUES (?, ?)", [(key, str(value)) for key, value in meta.items()])
            database.execute("COMMIT")
        finally:
            database.close()
        partial.rename(path)
        return cls(path)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Rollout side

    def prompt_of(self, dispatch: int) -> int:
        """The prompt of the n-th dispatch (see `PromptOrder`)."""
        return self._order.prompt_of(dispatch)

    def lease(self, worker: str, count: int, seconds: float) -> list[Lease]:
        """Up to `count` groups to write, expired leases first, then new dispatches as far as admission allows.

        A group may be dispatched while dispatched < (step + 1 + max_staleness) * groups_per_step, and never beyond the
        run's steps. [] when nothing is admitted now.
        """
        now = time.monotonic()
        with self._durable("lease"):
            if self._meta("state") != RUNNING:
                return []
            step = self.step
            dispatched = self._dispatched()
            expired = [
                row[0]
                for row in self._database.execute(
                    "SELECT dispatch FROM groups WHERE state = 'leased' AND deadline < ? ORDER BY dispatch LIMIT ?",
                    (now, count),
                )
            ]
            admitted = min(step + 1 + self.plan.max_staleness, self.plan.steps) * self.plan.groups_per_step
            fresh = range(dispatched, min(admitted, dispatched + count - len(expired)))
            self._database.executemany(
                "UPDATE groups SET worker = ?, deadline = ?, dispatched_step = ? WHERE dispatch = ?",
                [(worker, now + seconds, step, dispatch) for dispatch in expired],
            )
            self._database.executemany(
                "INSERT INTO groups (dispatch, prompt_index, state, worker, deadline, dispatched_step) "
                "VALUES (?, ?, 'leased', ?, ?, ?)",
                [(dispatch, self.prompt_of(dispatch), worker, now + seconds, step) for dispatch in fresh],
            )
            if expired:
                self._event("lease expired", f"groups {expired} given to {worker}", step)
        return [Lease(dispatch=n, prompt_index=self.prompt_of(n)) for n in [*expired, *fresh]]

    def renew(self, worker: str, seconds: float) -> None:
        """Move the deadline of all leases of a living worker."""
        with self._transaction():
            self._database.execute(
                "UPDATE groups SET deadline = ? WHERE state = 'leased' AND worker = ?",
                (time.monotonic() + seconds, worker),
            )

    def release(self, worker: str | None = None) -> int:
        """Return the leases of a dead worker (None: of all workers) to the pool; how many there were."""
        with self._transaction():
            return self._database.execute(
                "UPDATE groups SET deadline = -1 WHERE state = 'leased' AND deadline >= 0 "
                "AND worker = coalesce(?, worker)",
                (worker,),
            ).rowcount

    def commit(self, worker: str, groups: Mapping[int, Group], counters: Mapping[str, Any] | None = None) -> int:
        """Record written groups by dispatch number; how many were accepted.

        A group whose lease has passed to another worker, or that is committed already, is not accepted and counted as
        an event. `counters` replace the worker's.

        Raises:
            GroupError: a group is not of the prompt it was leased for, or does not carry exactly the planned channels.
        """
        rows = [(*to_row(self._checked(dispatch, group)), dispatch, worker) for dispatch, group in groups.items()]
        assignments = ", ".join(f"{column} = ?" for column in CONTENT.split(", "))
        with self._durable("commit"):
            accepted = self._database.executemany(
                f"UPDATE groups SET state = 'ready', {assignments} "
                "WHERE dispatch = ? AND state = 'leased' AND worker = ?",
                rows,
            ).rowcount
            if accepted < len(rows):
                self._event("late commit", f"{len(rows) - accepted} groups of {worker}, whose leases had expired")
            if counters is not None:
                self._report_worker(worker, counters)
        return accepted

    def report_worker(self, worker: str, counters: Mapping[str, Any]) -> None:
        """Replace a worker's counters (JSON values)."""
        with self._transaction():
            self._report_worker(worker, counters)

    # Learner side

    def take(self, count: int) -> Batch | None:
        """The `count` oldest ready groups, marked as trained by the next step; None while too few are ready.

        Raises:
            LedgerError: a batch was taken for that step already, and `finish_step` has not been called.
        """
        step = self.step + 1
        with self._durable("take"):
            taken = "SELECT 1 FROM groups WHERE state = 'trained' AND trained_step = ? LIMIT 1"
            if self._database.execute(taken, (step,)).fetchone():
                raise LedgerError(f"step {step} has its batch already; finish_step comes before the next take")
            rows = self._database.execute(
                f"SELECT dispatch, prompt_index, dispatched_step, {CONTENT} FROM groups WHERE state = 'ready' "
                "ORDER BY dispatch LIMIT ?",
                (count,),
            ).fetchall()
            if len(rows) < count:
                return None
            self._database.executemany(
                "UPDATE groups SET state = 'trained', trained_step = ? WHERE dispatch = ?",
                [(step, row[0]) for row in rows],
            )
        return Batch(
            step=step,
            groups=tuple(from_row(row[1], row[3:]) for row in rows),
            ages=tuple(step - 1 - row[2] for row in rows),
        )

    def finish_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record that `step` has updated the weights: admission moves on."""
        with self._durable("finish_step"):
            self._database.execute("INSERT INTO steps VALUES (?, ?)", (step, json.dumps(metrics)))
            self._set_meta("step", step)

    def make_durable(self) -> None:
        """Wait until everything recorded so far survives a loss of power. Called before a checkpoint is named."""
        self._database.execute("PRAGMA synchronous = FULL")
        with self._durable("make_durable"):
            self._set_meta("durable_step", self.step)
        self._database.execute("PRAGMA synchronous = NORMAL")

    def rewind(self, step: int) -> int:
        """Go back to the state after `step`: what was trained later becomes ready, leases return to the pool.

        Returns how many groups became ready again. Later steps and evaluations are forgotten.

        Raises:
            LedgerError: the ledger has not come to `step` yet.
        """
        if not 0 <= step <= self.step:
            raise LedgerError(f"cannot go back to step {step}: {self.path} is at step {self.step}")
        with self._durable("rewind"):
            ready = self._database.execute(
                "UPDATE groups SET state = 'ready', trained_step = NULL WHERE state = 'trained' AND trained_step > ?",
                (step,),
            ).rowcount
            self._database.execute("UPDATE groups SET deadline = -1 WHERE state = 'leased'")
            self._database.execute("DELETE FROM steps WHERE step > ?", (step,))
            self._database.execute("DELETE FROM evaluations WHERE step > ?", (step,))
            self._set_meta("step", step)
            self._set_meta("state", RUNNING)
        return ready

    def extend(self, steps: int) -> None:
        """Set the number of steps of the whole run anew.

        Raises:
            LedgerError: more steps are done or dispatched already.
        """
        needed = max(self.step, -(-self._dispatched() // self.plan.groups_per_step))
        if steps < needed:
            raise LedgerError(f"run.steps is {steps}, but groups for {needed} steps are dispatched already")
        with self._transaction():
            plan = json.loads(self._meta("plan")) | {"steps": steps}
            self._set_meta("plan", json.dumps(plan))
        self.plan = Plan(**plan | {"channels": self.plan.channels})

    def record_evaluation(self, name: str, step: int, result: Mapping[str, Any]) -> None:
        """Keep an evaluation's result (JSON values); a second one of that name and step replaces the first."""
        with self._transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?)", (name, step, json.dumps(result))
            )

    # Everyone

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self._meta("step"))

    @property
    def state(self) -> str:
        """running, stopping or finished."""
        return self._meta("state")

    def set_state(self, state: str) -> None:
        """Ask everyone to stop, or say that the run is finished."""
        if state not in (RUNNING, STOPPING, FINISHED):
            raise ValueError(f"unknown state {state!r}")
        with self._transaction():
            self._set_meta("state", state)

    def record_event(self, kind: str, message: str) -> None:
        """Count and keep a tolerated failure or another thing to show."""
        with self._transaction():
            self._event(kind, message)

    def status(self) -> Status:
        """Counts of now; its cost does not grow with the number of trained groups."""
        with self._transaction("DEFERRED"):
            dispatched, leased, ready = self._dispatched(), self._count("leased"), self._count("ready")
            return Status(
                state=self.state,
                step=self.step,
                dispatched=dispatched,
                leased=leased,
                ready=ready,
                trained=dispatched - leased - ready,
            )

    def steps(self, after: int = 0) -> list[dict[str, Any]]:
        """The metrics of the steps after `after`, in order; each has its `step`."""
        rows = self._database.execute("SELECT step, metrics FROM steps WHERE step > ? ORDER BY step", (after,))
        return [{"step": step, **json.loads(metrics)} for step, metrics in rows]

    def evaluations(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Results by name, then step."""
        results: dict[str, dict[int, dict[str, Any]]] = {}
        for name, step, result in self._database.execute("SELECT name, step, result FROM evaluations ORDER BY step"):
            results.setdefault(name, {})[step] = json.loads(result)
        return results

    def workers(self) -> dict[str, dict[str, Any]]:
        """Counters by worker."""
        rows = self._database.execute("SELECT worker, counters FROM workers ORDER BY worker")
        return {worker: json.loads(counters) for worker, counters in rows}

    def events(self) -> dict[str, tuple[int, str]]:
        """Per kind of event: how many, and the last message."""
        rows = self._database.execute("SELECT kind, count(*), message, max(id) FROM events GROUP BY kind ORDER BY kind")
        return {kind: (count, message) for kind, count, message, _ in rows}

    def ages_by_step(self) -> tuple[tuple[int, ...], ...]:
        """For each trained step the ages of its groups, in updates, in the order of dispatch."""
        rows = self._database.execute(
            "SELECT trained_step, trained_step - 1 - dispatched_step FROM groups WHERE state = 'trained' "
            "ORDER BY trained_step, dispatch"
        )
        ages: dict[int, list[int]] = {}
        for step, age in rows:
            ages.setdefault(step, []).append(age)
        return tuple(tuple(of_step) for of_step in ages.values())

    def records(self) -> Iterator[Record]:
        """All committed groups, in the order of dispatch."""
        rows = self._database.execute(
            f"SELECT dispatch, state, worker, dispatched_step, trained_step, prompt_index, {CONTENT} FROM groups "
            "WHERE state != 'leased' ORDER BY dispatch"
        )
        for dispatch, state, worker, dispatched_step, trained_step, prompt_index, *content in rows:
            yield Record(
                dispatch=dispatch,
                state=state,
                worker=worker,
                dispatched_step=dispatched_step,
                trained_step=trained_step,
                group=from_row(prompt_index, content),
            )

    def _checked(self, dispatch: int, group: Group) -> Group:
        if group.prompt_index != self.prompt_of(dispatch):
            raise GroupError(
                f"dispatch {dispatch} is prompt {self.prompt_of(dispatch)}, the group is of prompt {group.prompt_index}"
            )
        wanted = Channel.BEHAVIOR_LOGPROBS in self.plan.channels
        if wanted != (group.behavior_logprobs is not None):
            raise GroupError(
                f"prompt {group.prompt_index}: the objective needs behavior_logprobs and the group has none"
                if wanted
                else f"prompt {group.prompt_index}: the group carries behavior_logprobs, which are not needed"
            )
        return group

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        self._database.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextmanager
    def _durable(self, write: str) -> Iterator[None]:
        """A transaction that faults can be planted around."""
        with durable_write(f"ledger {write}", sqlite3.OperationalError), self._transaction():
            yield

    def _meta(self, key: str) -> str:
        return str(self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])

    def _set_meta(self, key: str, value: object) -> None:
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, str(value)))

    def _dispatched(self) -> int:
        return int(self._database.execute("SELECT coalesce(max(dispatch), -1) + 1 FROM groups").fetchone()[0])

    def _count(self, state: str) -> int:
        query = f"SELECT count(*) FROM groups WHERE state = '{state}'"
        return int(self._database.execute(query).fetchone()[0])

    def _report_worker(self, worker: str, counters: Mapping[str, Any]) -> None:
        self._database.execute("INSERT OR REPLACE INTO workers VALUES (?, ?)", (worker, json.dumps(counters)))

    def _event(self, kind: str, message: str, step: int | None = None) -> None:
        self._database.execute(
            "INSERT INTO events (time, step, kind, message) VALUES (?, ?, ?, ?)",
            (time.time(), self.step if step is None else step, kind, message),
        )


def _connect(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, timeout=60, isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.OperationalError as error:
        raise LedgerError(f"cannot open {path}: {error}; is the directory writable, and is there space?") from error
    return database
