"""Repair of a damaged ledger: `driftproof ledger repair`.

Guarantees: the damaged files are never written to; a group that is saved is the one that was committed, bit for bit
(the content of one written in format 1 has no checksum to tell); what survives of a step that stays done is not trained
again; `check` finds nothing wrong with the repaired ledger, and a resume goes on from it.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from driftproof.errors import DriftproofError, LedgerError
from driftproof.ledger.codec import row_checksum
from driftproof.ledger.maintenance.check import Header, check_ledger, content_problem, object_problem, read, row_problem
from driftproof.ledger.migrations import COUNT_EVENTS
from driftproof.ledger.records import FINISHED, RUNNING, Plan
from driftproof.ledger.schema import FORMAT_VERSION, ROW, STATE, TRAINED_STEP
from driftproof.ledger.store import UNREADABLE, Store, check_format, create_store, open_store, read_plan
from driftproof.run import RunDirectory, fsync, locked, step_of
from driftproof.weights.checkpoints import is_whole, list_checkpoints

OTHERS = {
    "evaluations": "name, step, result, checksum",
    "workers": "worker, counters, checksum",
    "events": "id, time, step, CAST(kind AS TEXT), CAST(message AS TEXT)",
}
"""Columns of the tables that are copied until the first page that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Outcome of the repair of a ledger."""

    path: Path
    kept: Path
    """The damaged ledger."""
    step: int
    step_before: int
    saved: int
    """Groups whose content is there."""
    lost: int
    """Trained groups whose content is not; it is not needed."""

    def lines(self) -> list[str]:
        """The outcome for people."""
        undone = f"steps {self.step + 1:,} to {self.step_before:,} are undone, and their groups trained again"
        anew = "no group can be saved; the run starts again from its newest checkpoint"
        goes_on = undone if self.step < self.step_before else "no step is undone"
        return [
            f"saved      {self.saved:,} groups; what {self.lost:,} trained ones held is lost",
            f"step       {self.step:,}: {goes_on if self.saved else anew}",
            f"repaired   {self.path}",
            f"damaged    {self.kept}, left as it was",
        ]


def repair_run(run: Path, output: Path | None = None, plan_anew: Callable[[], Plan] | None = None) -> Repair | None:
    """Write what can be saved into a new ledger, and put it in place of the damaged one (or at `output`).

    Returns None where nothing is wrong, and then does nothing. `plan_anew` makes the plan from the run's recipe, where
    the ledger's cannot be read. Raises a LedgerError where `output` exists, there is no plan, or no space.
    """
    if output is not None and output.exists():
        raise LedgerError(f"{output} exists already; name a new file")
    directory = RunDirectory(path=run)
    path = directory.ledger
    with locked(run):
        names = map(path.with_name, chain([f"{path.name}.damaged"], (f"{path.name}.damaged-{n}" for n in count(2))))
        # A repair that was killed in the middle has given the ledger another name, and may have moved its log there.
        kept = next(name for name in names if not name.exists() or name.samefile(path))
        base = max((step_of(each) for each in list_checkpoints(directory.checkpoints) if is_whole(each)), default=0)
        found = check_ledger(path)
        if not found.findings and base <= found.steps and not kept.exists():
            return None
        try:
            with tempfile.TemporaryDirectory(dir=run, prefix=".repair-") as temporary:
                new = Path(temporary, "repaired.sqlite")
                repair = _write_anew(path, kept, new, base, plan_anew)
                if output is None:
                    _exchange(path, kept, new)
                    return repair
                shutil.move(new, output)
                return replace(repair, path=output, kept=path)
        except (OSError, sqlite3.OperationalError) as error:
            raise LedgerError(
                f"{path} cannot be repaired: {error}; nothing was changed. A repair needs space for two ledgers more"
            ) from error


def _write_anew(path: Path, kept: Path, new: Path, base: int, plan_anew: Callable[[], Plan] | None) -> Repair:
    copy = new.with_name("damaged.sqlite")
    shutil.copyfile(path, copy)
    logs = (each.with_name(f"{each.name}-wal") for each in (path, kept))
    if log := next(filter(Path.exists, logs), None):
        shutil.copyfile(log, copy.with_name(f"{copy.name}-wal"))
    with closing(sqlite3.connect(copy, isolation_level=None)) as old:
        header = _header(path, old, plan_anew)
        header.step = min(header.step, header.plan.steps)
        create_store(new, header.plan)
        with closing(open_store(new)) as store, store.transaction():
            step, saved, lost = _salvage(old, store, header, min(base, header.plan.steps))
    if remaining := check_ledger(new).findings:
        raise LedgerError(f"{path} cannot be repaired: {remaining[0]}")
    return Repair(path=path, kept=kept, step=step, step_before=max(header.step, 0), saved=saved, lost=lost)


def _header(path: Path, old: sqlite3.Connection, plan_anew: Callable[[], Plan] | None) -> Header:
    """The header of the damaged ledger; the plan is the recipe's where it is lost."""
    old.text_factory = lambda text: text.decode(errors="replace")
    meta: dict[str, str] = {}
    with suppress(*UNREADABLE):
        # SQLite then reads a file that was cut off, too.
        old.execute("PRAGMA writable_schema = ON")
        old.execute("PRAGMA cell_size_check = ON")
        for key, value, *row in old.execute("SELECT key, value, * FROM meta").fetchall():
            # Formats before 3 have no checksums here.
            if isinstance(value, str) and row[2:] in ([], [row_checksum(key, value)]):
                meta[key] = value
    version = meta.get("format_version", "")
    if version.isdecimal() and int(version) > FORMAT_VERSION:
        check_format(path, meta)
    try:
        return Header(read_plan(path, meta), meta)
    except LedgerError as error:
        reason = f"nothing of {path} can be saved: what the run set out to do cannot be read ({error})"
        if plan_anew is None:
            raise LedgerError(reason) from error
    try:
        return Header(plan_anew(), meta)
    except DriftproofError as error:
        raise LedgerError(f"{reason}, nor made anew from its recipe ({error})") from error


def _salvage(old: sqlite3.Connection, store: Store, header: Header, base: int) -> tuple[int, int, int]:
    """Fill a new ledger with all rows that can be read and are what was written; formats before 3 have none.

    Returns the steps done, how many groups are whole, and how many are trained whose content is lost.
    """
    plan, prompt_of = header.plan, store.order.prompt_of
    rows: dict[int, list[Any]] = {}
    whole: set[int] = set()
    for n in range(header.admitted if header.step >= 0 else plan.steps * plan.groups_per_step):
        row = read(old, "groups", n)
        if not row_problem(row, prompt_of(n)):
            rows[n] = list(row[: len(ROW)])
            content = read(old, "contents", n)
            if content and not content_problem(header, row, content):
                store.write_contents([content])
                whole.add(n)
    step, trained = plan_repair(header, base, {n: row[TRAINED_STEP] for n, row in rows.items()}, whole)
    for n in range(1 + max([-1, *rows, *trained])):
        k = trained.get(n)
        state = "trained" if k else "ready" if n in whole else "leased"
        anew = [n, prompt_of(n), state, "repair", max((k or step) - 1, 0), *(None,) * (len(ROW) - 5)]
        row = rows.get(n, anew) if state != "leased" else anew
        row[STATE], row[TRAINED_STEP] = state, k
        store.write_groups([row])
    for k in range(1, step + 1):
        row = read(old, "steps", k)
        if not row or object_problem("metrics", row):
            row = (k, "{}", row_checksum(k, "{}"))
        store.execute("INSERT INTO steps VALUES (?, ?, ?)", *row)
    for table, columns in OTHERS.items():
        with suppress(*UNREADABLE):
            for row in old.execute(f"SELECT {columns} FROM {table}"):
                if table == "events" or not object_problem(table, row):
                    store.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", *row)
    store.execute("DELETE FROM evaluations WHERE step > ?", step)
    store.execute(COUNT_EVENTS)
    lost = [k for n, k in trained.items() if n not in whole and k > header.pruned_step]
    store.set_meta(
        state=FINISHED if header.state == FINISHED and step == plan.steps else RUNNING,
        step=step,
        durable_step=base,
        published_step=base,
        pruned_step=max([min(header.pruned_step, step), 0, *lost]),
        # How far admission had gone is not known.
        furthest_step=plan.steps,
    )
    return step, len(whole), len(lost)


def plan_repair(
    header: Header, base: int, rows: Mapping[int, int | None], whole: Collection[int]
) -> tuple[int, dict[int, int]]:
    """The step at which a repaired ledger stands, and by dispatch number the steps that trained its groups.

    The weights of the newest whole checkpoint, of step `base`, cannot be undone: the steps up to it stay done, whatever
    is left of their groups. Later steps of the header stay where all of their groups are whole, else all are undone.
    `rows` are the steps that trained the groups whose row can be read, `whole` those whose content is there.
    """
    size, every = header.plan.groups_per_step, range(header.plan.steps * header.plan.groups_per_step)
    by_step: dict[int, list[int]] = {k: [] for k in range(1, max(header.step, base) + 1)}
    for n, k in rows.items():
        if k in by_step and len(by_step[k]) < size:
            by_step[k].append(n)
    complete = all(
        len(by_step[k]) == size and (k <= header.pruned_step or all(n in whole for n in by_step[k]))
        for k in range(base + 1, header.step + 1)
    )
    done = len(by_step) if complete else base
    trained = {n: k for k in range(1, done + 1) for n in by_step[k]}
    # Gaps are filled by the oldest groups that nothing is known of: all, where the ledger is older than the checkpoint.
    unknown = (n for n in every if n not in rows or header.step < base)
    gaps = (n for n in chain(unknown, every) if n not in trained)
    for k in range(1, done + 1):
        for _ in range(size - len(by_step[k])):
            trained[next(gaps)] = k
    return done, trained


def _exchange(path: Path, kept: Path, new: Path) -> None:
    """Put the new ledger in place, and the damaged one beside it. There is a ledger at every moment."""
    fsync(new)
    if not kept.exists():
        kept.hardlink_to(path)
    for suffix in ("-wal", "-shm"):
        if (log := path.with_name(path.name + suffix)).exists():
            log.rename(kept.with_name(kept.name + suffix))
    new.rename(path)
    fsync(path.parent)
