"""What can be saved of a damaged ledger: `driftproof ledger repair`.

Guarantees: the damaged files are never written to; a group that is saved is the one that was committed, bit for bit
(those of format 1 have no checksum to tell); nothing that the newest whole checkpoint has learned is learned again;
`check` finds nothing wrong with the repaired ledger, and a resume goes on from it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftproof.errors import LedgerError
from driftproof.ledger.maintenance.check import Facts, check_ledger, content_problem, group_columns, is_object
from driftproof.ledger.maintenance.settle import Row, Settled, settle
from driftproof.ledger.schema import COLUMNS, CONTENT
from driftproof.ledger.store import FINISHED, RUNNING, UNREADABLE, Plan, check_format, make_tables, order_of, read_plan
from driftproof.run import RunDirectory, locked, step_directories
from driftproof.weights.checkpoints import is_whole

CHUNK = 256
"""Rows read at once, until one of them cannot be."""
UNKNOWN_LAST = 4096
"""Rows looked for in a table whose last one cannot be found."""
PAGE, HEADER = 4096, 100
"""Bytes of a page of our ledgers, and of SQLite's header in the first."""
MOST_GROWTH = 1024
"""A header that says that so many times as much is missing is damage itself."""
MOST_ROWS = 10_000_000
"""A number beyond is damage itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What became of a damaged ledger."""

    path: Path
    """The repaired ledger."""
    kept: Path
    """The damaged one."""
    step: int
    """At which the repaired one stands."""
    step_before: int
    saved: int
    """Groups whose content is there."""
    again: int
    """Dispatch numbers whose groups are to be written again, those among them that were leased."""
    lost: int
    """Groups that are trained and whose content is lost; it is not needed."""
    metrics_lost: int
    """Steps that are done and whose metrics are lost."""

    def lines(self) -> list[str]:
        """What a person wants to know."""
        if self.step < self.step_before:
            undone = f"steps {self.step + 1:,} to {self.step_before:,} are undone, and their groups trained again"
        else:
            undone = "no step is undone"
        return [
            f"saved      {self.saved:,} groups",
            f"again      {self.again:,} groups are to be written, again or for the first time",
            f"lost       what {self.lost:,} trained groups held; the metrics of {self.metrics_lost:,} steps",
            f"step       {self.step:,} of {self.step_before:,}: {undone}",
            f"repaired   {self.path}",
            f"damaged    {self.kept}, left as it was",
        ]


def repair_run(run: Path, output: Path | None = None) -> Repair | None:
    """Write what can be saved into a new ledger, and put it in place of the damaged one (or at `output`).

    Returns None where nothing is wrong, and then does nothing.

    Raises:
        UnavailableError: not a run, or one that is being worked on. LedgerError: nothing can be saved, `output` exists.
    """
    if output is not None and output.exists():
        raise LedgerError(f"{output} exists already; name a new file")
    run_directory = RunDirectory(path=run)
    path = run_directory.ledger
    with locked(run):
        _finish_interrupted(path)
        wholes = [step for step, path in step_directories(run_directory.checkpoints).items() if is_whole(path)]
        base = max(wholes, default=0)
        found = check_ledger(path)
        if not found.findings and base <= found.steps:
            return None
        with tempfile.TemporaryDirectory(dir=run, prefix=".repair-") as directory:
            copy = _copy(path, Path(directory))
            new = Path(directory) / "repaired.sqlite"
            repair = _salvage(path, copy, new, base)
            remaining = check_ledger(new).findings
            if remaining:
                raise LedgerError(f"{path} cannot be repaired: {remaining[0]}")
            if output is not None:
                shutil.move(new, output)
                return _placed(repair, output, path)
            return _placed(repair, path, _exchange(path, new))


def _placed(repair: Repair, path: Path, kept: Path) -> Repair:
    fields = {name: getattr(repair, name) for name in Repair.__dataclass_fields__}
    return Repair(**fields | {"path": path, "kept": kept})


def _copy(path: Path, directory: Path) -> Path:
    """With its write-ahead log, which SQLite applies to the copy then."""
    for suffix in ("", "-wal"):
        if (source := path.with_name(path.name + suffix)).exists():
            shutil.copyfile(source, directory / source.name)
    return directory / path.name


def _exchange(path: Path, new: Path) -> Path:
    """Put the new ledger in place; where the damaged one is now. There is a ledger at every moment."""
    with new.open("rb") as file:
        os.fsync(file.fileno())
    kept, number = path.with_name(f"{path.name}.damaged"), 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.damaged-{number}")
    os.link(path, kept)
    for suffix in ("-wal", "-shm"):
        if (log := path.with_name(path.name + suffix)).exists():
            log.rename(kept.with_name(kept.name + suffix))
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    return kept


def _finish_interrupted(path: Path) -> None:
    """A repair that was killed may have moved the log and not yet the ledger."""
    for kept in path.parent.glob(f"{path.name}.damaged*"):
        if kept.suffix.endswith(("-wal", "-shm")) or not kept.samefile(path):
            continue
        for suffix in ("-wal", "-shm"):
            if (log := kept.with_name(kept.name + suffix)).exists():
                log.rename(path.with_name(path.name + suffix))
        kept.unlink()


def _salvage(path: Path, copy: Path, new: Path, base: int) -> Repair:
    old, facts = _open(path, copy)
    with closing(old), closing(sqlite3.connect(new, isolation_level=None)) as fresh:
        rows = _read_rows(path, old, facts)
        metrics = {
            step: text
            for step, text in _rows(
                old, "SELECT step, metrics FROM steps WHERE step >= ? AND step < ?", 1, facts.plan.steps + 1
            )
            if is_object(text)
        }
        recorded = facts.step if 0 <= facts.step <= facts.plan.steps else max(metrics, default=0)
        pruned_step = facts.pruned_step if 0 <= facts.pruned_step <= recorded else 0
        settled = settle(
            plan=facts.plan,
            rows=rows,
            claims=_claims(old, facts.plan.steps),
            step=recorded,
            base=min(base, facts.plan.steps),
            pruned_step=pruned_step,
        )
        make_tables(fresh, facts.plan)
        fresh.execute("BEGIN")
        _write_meta(fresh, facts, settled, base, recorded)
        _write_groups(old, fresh, facts, settled)
        done = range(1, settled.step + 1)
        fresh.executemany("INSERT INTO steps VALUES (?, ?)", [(step, metrics.get(step, "{}")) for step in done])
        _write_others(old, fresh, settled.step)
        fresh.execute("COMMIT")
    return Repair(
        path=new,
        kept=path,
        step=settled.step,
        step_before=recorded,
        saved=len(settled.whole),
        again=len(settled.again),
        lost=len(settled.lost),
        metrics_lost=sum(step not in metrics for step in done),
    )


def _open(path: Path, copy: Path) -> tuple[sqlite3.Connection, Facts]:
    """What the copy says of itself; where its first page, which tells of the tables, is damaged, with a sound one.

    Raises:
        LedgerError: neither helps.
    """
    _pad(copy)
    problem: Exception | None = None
    for first_page in (None, *_first_pages(copy.parent)):
        if first_page is not None:
            _replace_first_page(copy, first_page)
        database = sqlite3.connect(copy, isolation_level=None)
        database.text_factory = lambda text: text.decode(errors="replace")
        try:
            database.execute("PRAGMA cell_size_check = ON")
            meta = {str(key): str(value) for key, value in database.execute("SELECT key, value FROM meta")}
            check_format(path, meta)
            return database, Facts.of(read_plan(path, meta), meta)
        except (*UNREADABLE, LedgerError) as error:
            problem = problem or error
            database.close()
    raise LedgerError(f"nothing of {path} can be saved: what the run set out to do cannot be read ({problem})")


def _pad(copy: Path) -> None:
    """Give a file that was cut off its full length: SQLite reads nothing of one that is shorter than it says."""
    with copy.open("r+b") as file:
        header = file.read(HEADER)
        page, pages = int.from_bytes(header[16:18]), int.from_bytes(header[28:32])
        size = copy.stat().st_size
        if page == PAGE and size < page * pages <= MOST_GROWTH * size:
            file.truncate(page * pages)


def _first_pages(directory: Path) -> Iterator[bytes]:
    """Of a new ledger, and of one that was compacted: a table begins on the same page in all such."""
    path = directory / "sound.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as sound:
        make_tables(sound, Plan(seed=0, prompts=1, groups_per_step=1, max_staleness=0, steps=1))
        yield path.read_bytes()[:PAGE]
        sound.execute("VACUUM")
    yield path.read_bytes()[:PAGE]


def _replace_first_page(copy: Path, page: bytes) -> None:
    """The new page says how many pages there are, and that none is free."""
    with copy.open("r+b") as file:
        pages = copy.stat().st_size // PAGE
        file.write(page[:28] + pages.to_bytes(4) + bytes(8) + page[40:92] + page[24:28] + page[96:])
    copy.with_name(f"{copy.name}-wal").unlink(missing_ok=True)


def _read_rows(path: Path, database: sqlite3.Connection, facts: Facts) -> dict[int, Row]:
    order = order_of(facts.plan)
    rows: dict[int, Row] = {}
    strangers = 0
    for dispatch, prompt, state, worker, dispatched_step, trained_step, crc, *content in _group_rows(database, facts):
        if prompt != order.prompt_of(dispatch):
            strangers += 1
            continue
        rows[dispatch] = Row(
            state=state,
            worker=worker if isinstance(worker, str) else "",
            dispatched_step=dispatched_step if isinstance(dispatched_step, int) else -1,
            trained_step=trained_step if isinstance(trained_step, int) else None,
            whole=not content_problem(facts, dispatch, prompt, crc, content),
        )
    if strangers > len(rows):
        raise LedgerError(
            f"nothing of {path} can be saved: {strangers} groups are of other prompts than its plan says; "
            "start the run anew"
        )
    return rows


def _group_rows(database: sqlite3.Connection, facts: Facts) -> Iterator[Any]:
    question = f"SELECT {group_columns(facts.version)} FROM groups WHERE dispatch >= ? AND dispatch < ?"
    yield from _rows(database, question, 0, facts.plan.steps * facts.plan.groups_per_step)


def _claims(database: sqlite3.Connection, steps: int) -> dict[int, int]:
    """By dispatch, the step that trained it, as the index says, which lies on other pages than the groups."""
    question = (
        "SELECT dispatch, trained_step FROM groups INDEXED BY groups_trained "
        "WHERE state = 'trained' AND trained_step >= ? AND trained_step < ?"
    )
    return {dispatch: step for dispatch, step in _rows(database, question, 1, steps + 1, key=1) if dispatch >= 0}


def _rows(database: sqlite3.Connection, question: str, low: int, high: int, key: int = 0) -> Iterator[Any]:
    """All rows that can be read with column `key` from `low` to under `high`, each once per number."""
    seen: set[int] = set()
    for start in range(low, high, CHUNK):
        end = min(start + CHUNK, high)
        for row in _readable(database, question, start, end):
            if isinstance(row[key], int) and start <= row[key] < end and row[0] not in seen:
                seen.add(row[0])
                yield row


def _readable(database: sqlite3.Connection, question: str, low: int, high: int) -> list[Any]:
    try:
        return database.execute(question, (low, high)).fetchall()
    except UNREADABLE:
        if high - low == 1:
            return []
    middle = (low + high) // 2
    return _readable(database, question, low, middle) + _readable(database, question, middle, high)


def _write_meta(database: sqlite3.Connection, facts: Facts, settled: Settled, base: int, recorded: int) -> None:
    plan = facts.plan
    dispatched_for = -(-settled.dispatched // plan.groups_per_step) - 1 - plan.max_staleness
    finished = facts.state == FINISHED and settled.step == recorded == plan.steps and not settled.again
    meta = {
        "state": FINISHED if finished else RUNNING,
        "step": settled.step,
        "durable_step": min(base, settled.step),
        "pruned_step": settled.pruned_step,
        "furthest_step": min(max(facts.furthest_step or 0, recorded, dispatched_for), plan.steps),
        "checked_from": settled.dispatched if facts.checked_from is None else max(facts.checked_from, 0),
    }
    rows = [(key, str(value)) for key, value in meta.items()]
    database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)


def _write_groups(old: sqlite3.Connection, new: sqlite3.Connection, facts: Facts, settled: Settled) -> None:
    """Copy what is whole, note what is not."""
    columns = f"dispatch, prompt_index, state, worker, deadline, dispatched_step, trained_step, checksum, {CONTENT}"
    insert = f"INSERT INTO groups ({columns}) VALUES ({', '.join('?' * (8 + len(COLUMNS)))})"
    order = order_of(facts.plan)

    def write(dispatch: int, content: Sequence[Any], crc: int | None = None) -> None:
        step, row = settled.trained.get(dispatch), settled.rows.get(dispatch)
        state = ("leased" if dispatch not in settled.whole else "ready") if step is None else "trained"
        worker = row.worker if row and row.worker else "repair"
        since = row.dispatched_step if row and row.dispatched_step >= 0 else max((step or settled.step) - 1, 0)
        new.execute(insert, (dispatch, order.prompt_of(dispatch), state, worker, -1.0, since, step, crc, *content))

    for dispatch, _, _, _, _, _, crc, *content in _group_rows(old, facts):
        if dispatch in settled.whole:
            write(dispatch, content, crc)
    for dispatch in (*settled.lost, *settled.pruned, *settled.again):
        write(dispatch, (None,) * len(COLUMNS))


def _write_others(old: sqlite3.Connection, new: sqlite3.Connection, step: int) -> None:
    """Evaluations, workers' counters and events, as far as they can be read."""

    def every(table: str, columns: str) -> list[Any]:
        last = _readable(old, f"SELECT max(rowid) FROM {table} WHERE ? < ?", 0, 1)
        found = last[0][0] if last else UNKNOWN_LAST
        high = min(found, MOST_ROWS) + 1 if isinstance(found, int) else 0
        question = f"SELECT rowid, {columns} FROM {table} WHERE rowid >= ? AND rowid < ?"
        return [row[1:] for row in _rows(old, question, 0, high)]

    evaluations = [row for row in every("evaluations", "name, step, result") if is_object(row[2])]
    evaluations = [row for row in evaluations if isinstance(row[1], int) and 0 <= row[1] <= step]
    new.executemany("INSERT OR IGNORE INTO evaluations VALUES (?, ?, ?)", evaluations)
    workers = _readable(old, "SELECT worker, counters FROM workers WHERE ? < ?", 0, 1)
    new.executemany("INSERT OR IGNORE INTO workers VALUES (?, ?)", [row for row in workers if is_object(row[1])])
    events = [
        row for row in every("events", "time, step, kind, message") if list(map(type, row)) == [float, int, str, str]
    ]
    new.executemany("INSERT INTO events (time, step, kind, message) VALUES (?, ?, ?, ?)", events)
    new.execute(
        "INSERT INTO event_kinds SELECT kind, count, message FROM "
        "(SELECT kind, count(*) AS count, message, max(id) FROM events GROUP BY kind)"
    )
