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
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from driftproof import __version__
from driftproof.errors import DamageError, GroupError, LedgerError
from driftproof.faults import fault_points
from driftproof.ledger.migrations import migrate
from driftproof.ledger.order import PromptOrder
from driftproof.ledger.schema import COLUMNS, CONTENT, FORMAT_VERSION, SCHEMA, checksum, read_group, to_row
from driftproof.types import Batch, Channel, Group

RUNNING, STOPPING, FINISHED = "running", "stopping", "finished"
UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What is raised for a damaged page; where SQLite's message quotes what it found there, the message is no text."""
PRUNED_AT_ONCE = 64
"""Steps whose groups are pruned in one transaction, so that nobody waits long for the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run set out to do; written once, when the ledger is made."""

    seed: int
    """Of the prompt permutations."""
    prompts: int
    """Prompts in the task's training split that are answered live."""
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
        """Open an existing ledger; one of an older format is brought to today's.

        Raises:
            LedgerError: no ledger there, a damaged one, or one of a newer format.
        """
        if not path.is_file():
            raise LedgerError(f"{path} does not exist; the directory is not a run")
        self.path = path
        self._database = _connect(path)
        try:
            self.plan = self._open()
        except LedgerError:
            self._database.close()
            raise
        self._order = order_of(self.plan)

    def _open(self) -> Plan:
        with damage_told(self.path):
            try:
                meta = dict(self._database.execute("SELECT key, value FROM meta"))
            except sqlite3.OperationalError as error:
                raise LedgerError(f"{self.path} is not a driftproof ledger ({error})") from error
            version = check_format(self.path, meta)
            plan = read_plan(self.path, meta)
            try:
                migrate(self._database)
            except sqlite3.OperationalError as error:
                raise LedgerError(
                    f"{self.path} has ledger format {version} and cannot be brought to {FORMAT_VERSION}: {error}; "
                    "is there space on the disk?"
                ) from error
            return plan

    @classmethod
    def create(cls, path: Path, plan: Plan) -> Self:
        """Make a new ledger.

        Raises:
            LedgerError: there is one already, or the plan cannot be carried out.
        """
        if path.exists():
            raise LedgerError(f"{path} exists already; use --resume to go on with that run")
        prompts = plan.recorded_prompts if plan.recorded_share == 1 else plan.prompts
        if min(prompts, plan.groups_per_step, plan.steps) < 1 or plan.max_staleness < 0:
            raise LedgerError(
                f"a run needs prompts, groups per step and steps above 0 and a staleness from 0; got {plan}"
            )
        if not 0 <= plan.recorded_share <= 1 or (plan.recorded_share > 0) != (plan.recorded_prompts > 0):
            raise LedgerError(
                f"recorded prompts and a share of them, above 0 and at most 1, belong together; got {plan}"
            )
        # A reader must never see a ledger without its tables.
        partial = path.with_suffix(".partial")
        for left_behind in path.parent.glob(f"{partial.name}*"):
            left_behind.unlink()
        database = _connect(partial)
        try:
            make_tables(database, plan)
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
        """Move the deadline of all leases of a living worker; one that was released is no longer its own."""
        with self._transaction():
            self._database.execute(
                "UPDATE groups SET deadline = ? WHERE state = 'leased' AND worker = ? AND deadline >= 0",
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
        contents = {dispatch: to_row(self._checked(dispatch, group)) for dispatch, group in groups.items()}
        rows = [(*content, checksum(content), dispatch, worker) for dispatch, content in contents.items()]
        assignments = ", ".join(f"{column} = ?" for column in COLUMNS)
        with self._durable("commit"):
            accepted = self._database.executemany(
                f"UPDATE groups SET state = 'ready', {assignments}, checksum = ? "
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
            LedgerError: a batch was taken for that step already, and `finish_step` has not been called; or a group is
                no longer what was committed.
        """
        step = self.step + 1
        with self._durable("take"):
            taken = "SELECT 1 FROM groups WHERE state = 'trained' AND trained_step = ? LIMIT 1"
            if self._database.execute(taken, (step,)).fetchone():
                raise LedgerError(f"step {step} has its batch already; finish_step comes before the next take")
            rows = self._database.execute(
                f"SELECT dispatch, prompt_index, dispatched_step, checksum, {CONTENT} FROM groups "
                "WHERE state = 'ready' ORDER BY dispatch LIMIT ?",
                (count,),
            ).fetchall()
            if len(rows) < count:
                return None
            groups = tuple(self._read_group(dispatch, prompt, row, crc) for dispatch, prompt, _, crc, *row in rows)
            self._database.executemany(
                "UPDATE groups SET state = 'trained', trained_step = ? WHERE dispatch = ?",
                [(step, row[0]) for row in rows],
            )
        return Batch(step=step, groups=groups, ages=tuple(step - 1 - row[2] for row in rows))

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
            LedgerError: the ledger has not come to `step` yet, or groups that would be needed again are pruned.
        """
        if not 0 <= step <= self.step:
            raise LedgerError(f"cannot go back to step {step}: {self.path} is at step {self.step}")
        if step < self.pruned_step:
            raise LedgerError(
                f"cannot go back to step {step}: in {self.path} what the groups trained up to step {self.pruned_step} "
                "held is pruned; only a checkpoint of that step or a later one can be gone on from"
            )
        with self._durable("rewind"):
            ready = self._database.execute(
                "UPDATE groups SET state = 'ready', trained_step = NULL WHERE state = 'trained' AND trained_step > ?",
                (step,),
            ).rowcount
            self._database.execute("UPDATE groups SET deadline = -1 WHERE state = 'leased'")
            self._database.execute("DELETE FROM steps WHERE step > ?", (step,))
            self._database.execute("DELETE FROM evaluations WHERE step > ?", (step,))
            # How far admission has gone, which going back does not undo; unknown in a ledger of format 1.
            self._raise_meta("furthest_step", self.step)
            self._lower_meta("durable_step", step)
            self._set_meta("step", step)
            self._set_meta("state", RUNNING)
        return ready

    def prune(self, step: int) -> int:
        """Forget what the groups trained up to `step` hold (tokens, log-probs, rewards); of how many.

        Their rows stay: all counts and ages are as before. `retention.prunable_step` says which step is safe.

        Raises:
            LedgerError: `step` is beyond the newest checkpoint.
        """
        durable = int(self._meta("durable_step", "0"))
        if step > durable:
            raise LedgerError(f"cannot prune up to step {step}: the newest checkpoint of {self.path} is of {durable}")
        pruned = 0
        for low in range(self.pruned_step, step, PRUNED_AT_ONCE):
            high = min(low + PRUNED_AT_ONCE, step)
            with self._transaction():
                pruned += self._database.execute(
                    f"UPDATE groups SET checksum = NULL, {', '.join(f'{column} = NULL' for column in COLUMNS)} "
                    "WHERE state = 'trained' AND trained_step > ? AND trained_step <= ? AND prompt_tokens IS NOT NULL",
                    (low, high),
                ).rowcount
                self._set_meta("pruned_step", high)
        return pruned

    def compact(self) -> None:
        """Give the space of what is pruned back to the file system; nobody else may be at work on the ledger."""
        with damage_told(self.path):
            self._database.execute("VACUUM")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def extend(self, steps: int) -> None:
        """Set the number of steps of the whole run anew.

        Raises:
            LedgerError: more steps are done or dispatched already.
        """
        needed = max(self.step, -(-self._dispatched() // self.plan.groups_per_step))
        if steps < needed:
            raise LedgerError(f"run.steps is {steps}, but groups for {needed} steps are dispatched already")
        plan = replace(self.plan, steps=steps)
        with self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", plan_rows(plan))
        self.plan = plan

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

    @property
    def pruned_step(self) -> int:
        """The last step whose groups' content may be forgotten; 0 is none."""
        return int(self._meta("pruned_step"))

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
        rows = self._rows("SELECT step, metrics FROM steps WHERE step > ? ORDER BY step", (after,))
        return [{"step": step, **json.loads(metrics)} for step, metrics in rows]

    def evaluations(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Results by name, then step."""
        results: dict[str, dict[int, dict[str, Any]]] = {}
        for name, step, result in self._rows("SELECT name, step, result FROM evaluations ORDER BY step"):
            results.setdefault(name, {})[step] = json.loads(result)
        return results

    def workers(self) -> dict[str, dict[str, Any]]:
        """Counters by worker."""
        rows = self._rows("SELECT worker, counters FROM workers ORDER BY worker")
        return {worker: json.loads(counters) for worker, counters in rows}

    def events(self) -> dict[str, tuple[int, str]]:
        """Per kind of event: how many, and the last message."""
        rows = self._rows("SELECT kind, count, message FROM event_kinds ORDER BY kind")
        return {kind: (count, message) for kind, count, message in rows}

    def ages_by_step(self) -> tuple[tuple[int, ...], ...]:
        """For each trained step the ages of its groups, in updates, in the order of dispatch."""
        rows = self._rows(
            "SELECT trained_step, trained_step - 1 - dispatched_step FROM groups WHERE state = 'trained' "
            "ORDER BY trained_step, dispatch"
        )
        ages: dict[int, list[int]] = {}
        for step, age in rows:
            ages.setdefault(step, []).append(age)
        return tuple(tuple(of_step) for of_step in ages.values())

    def records(self) -> Iterator[Record]:
        """All committed groups, in the order of dispatch; those that are pruned are left out.

        Raises:
            LedgerError: a group is no longer what was committed.
        """
        rows = self._rows(
            f"SELECT dispatch, state, worker, dispatched_step, trained_step, prompt_index, checksum, {CONTENT} "
            "FROM groups WHERE state != 'leased' AND (prompt_tokens IS NOT NULL OR trained_step IS NULL "
            "OR trained_step > (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'pruned_step')) ORDER BY dispatch"
        )
        for dispatch, state, worker, dispatched_step, trained_step, prompt_index, crc, *content in rows:
            yield Record(
                dispatch=dispatch,
                state=state,
                worker=worker,
                dispatched_step=dispatched_step,
                trained_step=trained_step,
                group=self._read_group(dispatch, prompt_index, content, crc),
            )

    def _read_group(self, dispatch: int, prompt_index: int, row: Sequence[Any], crc: int | None) -> Group:
        try:
            return read_group(prompt_index, row, crc)
        except DamageError as error:
            raise LedgerError(damaged(self.path, f"group {dispatch}: {error}")) from error

    def _checked(self, dispatch: int, group: Group) -> Group:
        if group.prompt_index != self.prompt_of(dispatch):
            raise GroupError(
                f"dispatch {dispatch} is prompt {self.prompt_of(dispatch)}, the group is of prompt {group.prompt_index}"
            )
        if problem := channel_problem(self.plan, group):
            raise GroupError(f"prompt {group.prompt_index}: {problem}")
        return group

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        with damage_told(self.path):
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
        with fault_points(f"ledger {write}", sqlite3.OperationalError), self._transaction():
            yield

    def _rows(self, question: str, values: Sequence[object] = ()) -> Iterator[Any]:
        with damage_told(self.path):
            yield from self._database.execute(question, values)

    def _meta(self, key: str, default: str | None = None) -> str:
        for (value,) in self._rows("SELECT value FROM meta WHERE key = ?", (key,)):
            return str(value)
        if default is None:
            raise LedgerError(damaged(self.path, f"its {key} is missing"))
        return default

    def _set_meta(self, key: str, value: object) -> None:
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, str(value)))

    def _raise_meta(self, key: str, least: int) -> None:
        """Nothing where the ledger does not know it."""
        self._database.execute(
            "UPDATE meta SET value = CAST(max(CAST(value AS INTEGER), ?) AS TEXT) WHERE key = ?", (least, key)
        )

    def _lower_meta(self, key: str, most: int) -> None:
        self._database.execute(
            "UPDATE meta SET value = CAST(min(CAST(value AS INTEGER), ?) AS TEXT) WHERE key = ?", (most, key)
        )

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
        self._database.execute(
            "INSERT INTO event_kinds VALUES (?, 1, ?) "
            "ON CONFLICT (kind) DO UPDATE SET count = count + 1, message = excluded.message",
            (kind, message),
        )


def order_of(plan: Plan) -> PromptOrder:
    """Which prompt is the n-th."""
    return PromptOrder(plan.seed, plan.prompts, plan.recorded_prompts, plan.recorded_share)


def channel_problem(plan: Plan, group: Group) -> str:
    """Empty where a group carries exactly the planned channels, else what is wrong."""
    wanted = Channel.BEHAVIOR_LOGPROBS in plan.channels
    if wanted == (group.behavior_logprobs is not None):
        return ""
    if wanted:
        return "the objective needs behavior_logprobs and the group has none"
    return "the group carries behavior_logprobs, which are not needed"


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """What `meta` holds of a plan."""
    fields = {name: getattr(plan, name) for name in Plan.__dataclass_fields__} | {"channels": sorted(plan.channels)}
    text = json.dumps(fields)
    return [("plan", text), ("plan_checksum", str(zlib.crc32(text.encode())))]


def read_plan(path: Path, meta: Mapping[str, str]) -> Plan:
    """The plan that `meta` holds.

    Raises:
        LedgerError: there is none, it is damaged, or it says what this driftproof does not know.
    """
    text = meta.get("plan", "")
    # A ledger of format 1 has no checksum of it.
    if meta.get("plan_checksum", str(zlib.crc32(text.encode()))) != str(zlib.crc32(text.encode())):
        raise LedgerError(damaged(path, "the plan's checksum does not agree"))
    try:
        plan = json.loads(text)
        if unknown := sorted(plan.keys() - Plan.__dataclass_fields__.keys()):
            made = meta.get("driftproof", "a newer one")
            raise LedgerError(
                f"the plan of {path} has {', '.join(unknown)}, which driftproof {__version__} does not know; it was "
                f"made by driftproof {made}: install that or a later one (pip install -U driftproof)"
            )
        return Plan(**plan | {"channels": frozenset(map(Channel, plan["channels"]))})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LedgerError(damaged(path, f"the plan cannot be read: {error}")) from error


def check_format(path: Path, meta: Mapping[str, str]) -> int:
    """The format of a ledger.

    Raises:
        LedgerError: this driftproof does not know it.
    """
    version = meta.get("format_version", "")
    if version.isdecimal() and 1 <= int(version) <= FORMAT_VERSION:
        return int(version)
    if version.isdecimal():
        made = meta.get("driftproof", "a newer one")
        raise LedgerError(
            f"{path} has ledger format {version}, made by driftproof {made}; this is driftproof {__version__}, which "
            f"reads formats 1 to {FORMAT_VERSION}: install driftproof {made} or later (pip install -U driftproof)"
        )
    raise LedgerError(damaged(path, f"its format is {version or 'missing'}"))


def make_tables(database: sqlite3.Connection, plan: Plan) -> None:
    """Fill an empty database with a ledger's tables, in one transaction."""
    meta = {"format_version": FORMAT_VERSION, "driftproof": __version__, "state": RUNNING, "step": 0}
    meta |= {"pruned_step": 0, "checked_from": 0, "furthest_step": 0}
    database.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
    rows = [*((key, str(value)) for key, value in meta.items()), *plan_rows(plan)]
    database.executemany("INSERT INTO meta VALUES (?, ?)", rows)
    database.execute("COMMIT")


def damaged(path: Path, what: str) -> str:
    """The message for a ledger that does not hold what was written, and what to do about it."""
    run = path.absolute().parent
    return (
        f"{path} is damaged ({what}); see what is wrong: driftproof ledger check {run}; "
        f"save what can be saved: driftproof ledger repair {run}"
    )


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Makes a LedgerError of what SQLite says of a damaged file."""
    try:
        yield
    except UNREADABLE as error:
        # A text that is no text any more has no code.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        if isinstance(error, sqlite3.ProgrammingError) or code & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        raise LedgerError(damaged(path, str(error))) from error


def _connect(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, timeout=60, isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.OperationalError as error:
        raise LedgerError(f"cannot open {path}: {error}; is the directory writable, and is there space?") from error
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise LedgerError(f"{path} is not a driftproof ledger ({error})") from error
        raise LedgerError(damaged(path, str(error))) from error
    return database
