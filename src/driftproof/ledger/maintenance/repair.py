"""Repair of a damaged ledger: `driftproof ledger repair`.

Guarantees: the damaged files are never written to; a group that is saved is the one that was committed, bit for bit
(the content of one written in format 1 has no checksum to tell); what survives of a step that stays done is not trained
again; `check` finds nothing wrong with the repaired ledger, and a resume goes on from it.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from driftproof.errors import DriftproofError, LedgerError
from driftproof.ledger.codec import row_checksum
from driftproof.ledger.maintenance.check import LedgerHeader, check_ledger, content_problem, object_problem, row_problem
from driftproof.ledger.migrations import migrate
from driftproof.ledger.records import FINISHED, RUNNING, Plan
from driftproof.ledger.schema import FORMAT_VERSION, ROW
from driftproof.ledger.store import UNREADABLE, Store, check_format, create_store, open_store, read_plan
from driftproof.run import RunDirectory, fsync, locked, step_of
from driftproof.weights.checkpoints import is_whole, list_checkpoints

CHUNK = 256
"""Rows read at once; one by one where that fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Outcome of the repair of a ledger."""

    path: Path
    """The repaired ledger."""
    kept: Path
    """The damaged one."""
    step: int
    """Steps done in the repaired one."""
    step_before: int
    saved: int
    """Groups whose content is there."""
    again: int
    """Groups to be written again, those among them that were leased."""
    lost: int
    """Trained groups whose content is lost; it is not needed."""
    metrics_lost: int
    """Steps done whose metrics are lost."""

    def lines(self) -> list[str]:
        """The outcome for people."""
        anew = "no group can be saved: the run starts again from its newest checkpoint, and writes all later ones anew"
        undone = "no step is undone"
        if self.step < self.step_before:
            undone = f"steps {self.step + 1:,} to {self.step_before:,} are undone, and their groups trained again"
        return [
            *([] if self.saved else [f"unread     {anew}"]),
            f"saved      {self.saved:,} groups",
            f"again      {self.again:,} groups are to be written, again or for the first time",
            f"lost       what {self.lost:,} trained groups held; the metrics of {self.metrics_lost:,} steps",
            f"step       {self.step:,} of {self.step_before:,}: {undone}",
            f"repaired   {self.path}",
            f"damaged    {self.kept}, left as it was",
        ]


def repair_run(run: Path, output: Path | None = None, plan_anew: Callable[[], Plan] | None = None) -> Repair | None:
    """Write what can be saved into a new ledger, and put it in place of the damaged one (or at `output`).

    Returns None where nothing is wrong, and then does nothing.

    Args:
        plan_anew: makes the plan from the run's recipe, where the ledger's cannot be read.

    Raises:
        UnavailableError: not a run, or one that is being worked on.
        LedgerError: `output` exists, there is no plan, or no space.
    """
    if output is not None and output.exists():
        raise LedgerError(f"{output} exists already; name a new file")
    directory = RunDirectory(path=run)
    path = directory.ledger
    with locked(run):
        _finish_interrupted(path)
        base = max((step_of(each) for each in list_checkpoints(directory.checkpoints) if is_whole(each)), default=0)
        found = check_ledger(path)
        if not found.findings and base <= found.steps:
            return None
        try:
            with tempfile.TemporaryDirectory(dir=run, prefix=".repair-") as temporary:
                return _repair(path, Path(temporary), base, output, plan_anew)
        except (OSError, sqlite3.OperationalError) as error:
            raise LedgerError(
                f"{path} cannot be repaired: {error}; nothing was changed. A repair needs space for two ledgers more"
            ) from error


def _repair(
    path: Path, temporary: Path, base: int, output: Path | None, plan_anew: Callable[[], Plan] | None
) -> Repair:
    copy, new = temporary / path.name, temporary / "repaired.sqlite"
    for suffix in ("", "-wal"):
        if (source := path.with_name(path.name + suffix)).exists():
            shutil.copyfile(source, copy.with_name(copy.name + suffix))
    repair = _salvage(path, copy, new, base, plan_anew)
    if remaining := check_ledger(new).findings:
        raise LedgerError(f"{path} cannot be repaired: {remaining[0]}")
    if output is None:
        return replace(repair, kept=_exchange(path, new))
    shutil.move(new, output)
    return replace(repair, path=output)


def plan_repair(
    header: LedgerHeader, base: int, rows: Collection[int], trained_in: Mapping[int, int], whole: Collection[int]
) -> tuple[int, dict[int, int]]:
    """The step at which a repaired ledger stands, and by dispatch number the steps that trained its groups.

    The weights of the newest whole checkpoint, of step `base`, cannot be undone: the steps up to it stay done, whatever
    is left of their groups. Later steps of the header stay where all of their groups are whole, else all are undone.

    Args:
        rows: dispatch numbers whose row can be read.
        trained_in: steps by dispatch number, as the rows say, and an index of those that cannot be read.
        whole: dispatch numbers whose content is there.
    """
    size, every = header.plan.groups_per_step, range(header.plan.steps * header.plan.groups_per_step)
    by_step: dict[int, list[int]] = {}
    for n, k in sorted(trained_in.items(), key=lambda item: (item[0] not in rows, item[0])):
        if n in every and len(of_step := by_step.setdefault(k, [])) < size:
            of_step.append(n)

    def complete(k: int) -> bool:
        of_step = by_step.get(k, [])
        return len(of_step) == size and (k <= header.pruned_step or all(n in whole for n in of_step))

    done = max(header.step, base) if all(map(complete, range(base + 1, header.step + 1))) else base
    trained = {n: k for k in range(1, done + 1) for n in by_step.get(k, [])}
    # Gaps are filled with groups that nothing is known of. In steps that the ledger has no record of, groups were taken
    # as ever: the oldest first.
    unknown = (n for n in chain((n for n in every if n not in rows), every) if n not in trained)
    oldest = (n for n in every if n not in trained)
    for k in range(1, done + 1):
        for _ in range(size - len(by_step.get(k, []))):
            trained[next(oldest if k > header.step else unknown)] = k
    return done, trained


def _salvage(path: Path, copy: Path, new: Path, base: int, plan_anew: Callable[[], Plan] | None) -> Repair:
    with closing(sqlite3.connect(copy, isolation_level=None)) as old:
        header = _header(path, old, plan_anew)
        plan, base = header.plan, min(base, header.plan.steps)
        create_store(new, plan)
        with closing(open_store(new)) as store, store.transaction():
            indexed = _copy_rows(old, store, header)
            rows = dict(store.execute("SELECT dispatch, trained_step FROM groups"))
            whole = {n for (n,) in store.execute("SELECT dispatch FROM contents")}
            before = header.step if 0 <= header.step <= plan.steps else store.number("SELECT count(*) FROM steps")
            header = replace(header, step=before, pruned_step=min(max(header.pruned_step, 0), before))
            trained_in = {n: step for n, step in (indexed | rows).items() if step is not None}
            step, trained = plan_repair(header, base, rows, trained_in, whole)
            dispatched = 1 + max([-1, *rows, *trained_in, *trained])
            lost = [k for n, k in trained.items() if n not in whole and k > header.pruned_step]
            _place_groups(store, dispatched, trained, whole, step)
            metrics_lost = _mend_steps(store, step)
            dispatched_for = -(-dispatched // plan.groups_per_step) - 1 - plan.max_staleness
            store.set_meta(
                state=FINISHED if header.state == FINISHED and step == plan.steps else RUNNING,
                step=step,
                durable_step=min(base, step),
                published_step=min(max(header.published_step, base), step),
                pruned_step=max([min(header.pruned_step, step), *lost]),
                furthest_step=min(max(header.furthest_step, before, dispatched_for), plan.steps),
            )
    return Repair(
        path=path,
        kept=path,
        step=step,
        step_before=before,
        saved=len(whole),
        again=dispatched - len(whole | trained.keys()),
        lost=len(lost),
        metrics_lost=metrics_lost,
    )


def _header(path: Path, old: sqlite3.Connection, plan_anew: Callable[[], Plan] | None) -> LedgerHeader:
    """The header of the damaged ledger, brought to today's format; the plan is the recipe's where it is lost."""
    old.text_factory = lambda text: text.decode(errors="replace")
    old.create_function("row_checksum", -1, row_checksum, deterministic=True)
    meta: dict[str, str] = {}
    plan: Plan | None = None
    try:
        # SQLite then reads a file that was cut off, too, and one that lacks some table.
        old.execute("PRAGMA writable_schema = ON")
        old.execute("PRAGMA cell_size_check = ON")
        meta = _meta(old)
        version = check_format(path, meta)
        plan = read_plan(path, meta)
        if version < FORMAT_VERSION:
            migrate(old)
            meta = _meta(old)
    except (*UNREADABLE, LedgerError) as error:
        plan = plan or _plan_of_recipe(path, error, plan_anew)
    return LedgerHeader.of(plan, meta)


def _meta(old: sqlite3.Connection) -> dict[str, str]:
    """All of `meta` whose checksum agrees; formats before 3 have none."""
    rows = old.execute("SELECT * FROM meta").fetchall()
    return {key: value for key, value, *seal in rows if seal in ([], [row_checksum(key, value)])}


def _plan_of_recipe(path: Path, problem: Exception, plan_anew: Callable[[], Plan] | None) -> Plan:
    reason = f"nothing of {path} can be saved: what the run set out to do cannot be read ({problem})"
    if plan_anew is None:
        raise LedgerError(reason) from problem
    try:
        return plan_anew()
    except DriftproofError as error:
        raise LedgerError(f"{reason}, nor made anew from its recipe ({error})") from error


def _copy_rows(old: sqlite3.Connection, store: Store, header: LedgerHeader) -> dict[int, int]:
    """Copy all rows that can be read and are what was written; steps of trained groups, as their index has them."""
    plan, steps = header.plan, header.plan.steps + 1
    groups = header.admitted if header.step >= 0 else plan.steps * plan.groups_per_step
    question = f"SELECT {', '.join(ROW)}, checksum FROM groups WHERE dispatch >= ? AND dispatch < ?"
    for *row, checksum in _rows(old, question, groups):
        if not row_problem(row, checksum, store.order.prompt_of(row[0])):
            store.write_groups([row])
    for dispatch, *content in _rows(old, "SELECT * FROM contents WHERE dispatch >= ? AND dispatch < ?", groups):
        row = store.execute(f"SELECT {', '.join(ROW)} FROM groups WHERE dispatch = ?", dispatch).fetchone()
        if row and not content_problem(plan, row, content):
            store.write_contents([(dispatch, *content)])
    sealed = {"steps": _rows(old, "SELECT * FROM steps WHERE step >= ? AND step < ?", steps)}
    sealed |= {table: _until_damage(old, f"SELECT * FROM {table}") for table in ("evaluations", "workers")}
    for table, rows in sealed.items():
        for row in rows:
            if not object_problem(table, row):
                store.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", *row)
    for event in _until_damage(old, "SELECT time, step, kind, message FROM events"):
        if [*map(type, event)] == [float, int, str, str]:
            store.execute("INSERT INTO events (time, step, kind, message) VALUES (?, ?, ?, ?)", *event)
    question = (
        "SELECT dispatch, trained_step FROM groups INDEXED BY groups_trained "
        "WHERE state = 'trained' AND trained_step >= ? AND trained_step < ?"
    )
    return {n: step for n, step in _rows(old, question, steps) if 0 <= n < groups}


def _rows(database: sqlite3.Connection, question: str, end: int) -> Iterator[Any]:
    """All rows that can be read of a question about the numbers from one up to under another, below `end`."""
    for low in range(0, end, CHUNK):
        try:
            yield from database.execute(question, (low, min(low + CHUNK, end))).fetchall()
        except UNREADABLE as error:
            if getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
                return
            for number in range(low, min(low + CHUNK, end)):
                with suppress(*UNREADABLE):
                    yield from database.execute(question, (number, number + 1)).fetchall()


def _until_damage(database: sqlite3.Connection, question: str) -> Iterator[Any]:
    with suppress(*UNREADABLE):
        yield from database.execute(question)


def _place_groups(store: Store, dispatched: int, trained: Mapping[int, int], whole: Collection[int], step: int) -> None:
    """Give every dispatch number its state: trained, ready where its content is whole, else to be written again."""
    placed = {row[0]: row for row in store.execute(f"SELECT {', '.join(ROW)} FROM groups").fetchall()}
    for n in range(dispatched):
        trained_step = trained.get(n)
        state = "trained" if trained_step else "ready" if n in whole else "leased"
        since = max((trained_step or step) - 1, 0)
        row = (n, store.order.prompt_of(n), state, "repair", since, *(None,) * (len(ROW) - 5))
        if n in placed and state != "leased":
            row = placed[n]
        row = (*row[:2], state, *row[3:6], trained_step, *row[7:])
        if row != placed.get(n):
            store.write_groups([row])


def _mend_steps(store: Store, step: int) -> int:
    """Have a row for each step done and for no other, and count events by kind; how many metrics are lost."""
    store.execute("DELETE FROM steps WHERE step > ?", step)
    store.execute("DELETE FROM evaluations WHERE step > ?", step)
    there = {number for (number,) in store.execute("SELECT step FROM steps")}
    missing = [number for number in range(1, step + 1) if number not in there]
    for number in missing:
        store.execute("INSERT INTO steps VALUES (?, '{}', ?)", number, row_checksum(number, "{}"))
    store.execute(
        "INSERT INTO event_kinds SELECT kind, count, message FROM "
        "(SELECT kind, count(*) AS count, message, max(id) FROM events GROUP BY kind)"
    )
    return len(missing)


def _exchange(path: Path, new: Path) -> Path:
    """Put the new ledger in place; where the damaged one is now. There is a ledger at every moment."""
    fsync(new)
    kept, number = path.with_name(f"{path.name}.damaged"), 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.damaged-{number}")
    kept.hardlink_to(path)
    _move_log(path, kept)
    new.rename(path)
    fsync(path.parent)
    return kept


def _finish_interrupted(path: Path) -> None:
    """Undo a repair that was killed after it had moved the log, and before the ledger."""
    for kept in path.parent.glob(f"{path.name}.damaged*"):
        if not kept.name.endswith(("-wal", "-shm")) and kept.samefile(path):
            _move_log(kept, path)
            kept.unlink()


def _move_log(ledger: Path, other: Path) -> None:
    for suffix in ("-wal", "-shm"):
        if (log := ledger.with_name(ledger.name + suffix)).exists():
            log.rename(other.with_name(other.name + suffix))
