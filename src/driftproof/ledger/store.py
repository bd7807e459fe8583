"""One process's connection to a ledger: transactions, checked values, making and opening.

Guarantees: every event is one transaction; what is read agrees with its checksum, or a LedgerError says what to do.
"""

import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from operator import itemgetter
from pathlib import Path
from typing import Any

from driftproof import __version__
from driftproof.errors import LedgerError, command_line
from driftproof.faults import fault_points
from driftproof.ledger.codec import row_checksum
from driftproof.ledger.migrations import migrate
from driftproof.ledger.order import PromptOrder
from driftproof.ledger.records import RUNNING, Counters, Plan
from driftproof.ledger.schema import CONTENT, FORMAT_VERSION, ROW, SCHEMA
from driftproof.run import partial_name
from driftproof.text import printable_lines
from driftproof.types import Channel, Group

UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""Errors of a damaged page; where SQLite's message quotes what it found there, the message is no text."""
BUSY_SECONDS = 60.0
"""How long a process waits for another's transaction."""
DIGITS = 15
"""Digits of a number in `meta`."""
CREATE = "mode=rwc"
READ, WRITE = ("SELECT * FROM sqlite_master LIMIT 1",), ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL")
"""Statements that a connection to read, and one to write, begins with."""


class Store:
    """A connection to a ledger of today's format. Use one per process; SQLite arbitrates between them."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self.database = database
        self.plan = read_plan(path, self.header())
        plan = self.plan
        self.order = PromptOrder(plan.seed, plan.prompts, plan.recorded_prompts, plan.recorded_share)

    def close(self) -> None:
        self.database.close()

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE", *, fault: str = "") -> Iterator[None]:
        """All or nothing; `fault` names the places around it at which a run can be made to fail."""
        faults = fault_points(f"ledger {fault}", sqlite3.OperationalError) if fault else nullcontext()
        with faults, damage_told(self.path):
            self.database.execute(f"BEGIN {kind}")
            try:
                yield
            except BaseException:
                if self.database.in_transaction:
                    self.database.execute("ROLLBACK")
                raise
            self.database.execute("COMMIT")

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self.database.execute(statement, values)

    def rows(self, question: str, *values: object) -> Iterator[Any]:
        with damage_told(self.path):
            yield from self.database.execute(question, values)

    def number(self, question: str, *values: object) -> int:
        """The one number that a question is answered with."""
        with damage_told(self.path):
            return int(self.database.execute(question, values).fetchone()[0])

    def sealed(self, question: str, what: str, read: Callable[[str], Any], *values: object) -> Iterator[Any]:
        """Rows that end with a text, of which `read` makes a value, and with their checksum, which must agree."""
        for *row, checksum in self.rows(question, *values):
            try:
                if row_checksum(*row) != checksum:
                    raise ValueError("its checksum does not agree")
                value = read(row[-1])
            except (ValueError, TypeError) as error:
                raise self.damage(f"{what} {' '.join(map(str, row[:-1]))}: {error}") from error
            yield *row[:-1], value

    def header(self, *keys: str) -> dict[str, str]:
        """Values of `meta`, all that there are, or those of some keys, none of which may be missing."""
        some = f" WHERE key IN ({', '.join('?' * len(keys))})" if keys else ""
        found = dict(self.sealed(f"SELECT key, value, checksum FROM meta{some}", "meta", str, *keys))
        if missing := [key for key in keys if key not in found]:
            raise self.damage(f"its {missing[0]} is missing")
        return found

    def meta_number(self, key: str) -> int:
        value = self.header(key)[key]
        if not value.isdecimal() or len(value) > DIGITS:
            raise self.damage(f"its {key} is {value[:60]}")
        return int(value)

    def set_meta(self, **values: object) -> None:
        rows = [(key, str(value), row_checksum(key, str(value))) for key, value in values.items()]
        self.database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", rows)

    def write_groups(self, rows: Iterable[Sequence[Any]], deadline: float = -1.0) -> None:
        """Put whole rows of `groups`, of the columns `ROW`, in place of those of the same dispatch numbers."""
        insert = f"INSERT OR REPLACE INTO groups ({', '.join(ROW)}, checksum, deadline) VALUES ({'?, ' * len(ROW)}?, ?)"
        self.database.executemany(insert, ((*row, row_checksum(*row), deadline) for row in rows))

    def groups(self, which: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """Rows of `groups`, of the columns `ROW`, each checked."""
        for row in self.rows(f"SELECT {', '.join(ROW)}, checksum FROM groups WHERE {which}", *values):
            yield self.checked(row)

    def checked(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """The columns `ROW` of a row that begins with them and their checksum, which must agree."""
        columns = tuple(row[: len(ROW)])
        if row_checksum(*columns) != row[len(ROW)]:
            raise self.damage(f"group {row[0]}: its row's checksum does not agree")
        return columns

    def change_groups(self, rows: Iterable[Sequence[Any]], *columns: str) -> None:
        """Write these columns of whole rows of `groups`, and the rows' checksums; no other column has changed."""
        values_of = itemgetter(*map(ROW.index, columns))
        assignments = ", ".join(f"{column} = ?" for column in (*columns, "checksum"))
        values = [(*values_of(row), row_checksum(*row), row[0]) for row in rows]
        # A checksum made here costs half of one that SQLite asks for, column by column.
        self.database.executemany(f"UPDATE groups SET {assignments} WHERE dispatch = ?", values)

    def write_contents(self, rows: Iterable[Sequence[Any]]) -> None:
        """Put whole rows of `contents`, a dispatch number and the columns `CONTENT`, in place."""
        holes = ", ".join("?" * (1 + len(CONTENT)))
        self.database.executemany(f"INSERT OR REPLACE INTO contents VALUES ({holes})", rows)

    def set_counters(self, worker: str, counters: Counters) -> None:
        text = counters.to_json()
        self.execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?)", worker, text, row_checksum(worker, text))

    def add_event(self, kind: str, message: str) -> None:
        """Count and keep an event, inside a transaction; what it quotes is made harmless for whoever reads it."""
        kind, message = printable_lines(kind), printable_lines(message)
        now = time.time(), self.meta_number("step")
        self.execute("INSERT INTO events (time, step, kind, message) VALUES (?, ?, ?, ?)", *now, kind, message)
        again = "ON CONFLICT (kind) DO UPDATE SET count = count + 1, message = excluded.message"
        self.execute(f"INSERT INTO event_kinds VALUES (?, 1, ?) {again}", kind, message)

    def damage(self, what: str) -> LedgerError:
        return damaged(self.path, what)


def open_store(path: Path, *, read_only: bool = False, untouched: bool = False) -> Store:
    """Open an existing ledger; one of an older format is brought to today's, in a private copy where it is only read.

    SQLite makes a log beside one that has none, but if `untouched`: then changes that begin meanwhile are not seen.
    """
    if not path.is_file():
        raise LedgerError(f"{path} does not exist; the directory is not a run")
    database = _connect(path, _reading(path, untouched) if read_only else [CREATE])
    try:
        with damage_told(path):
            if (version := _format(path, database)) < FORMAT_VERSION:
                if read_only:
                    copy = sqlite3.connect("", isolation_level=None)
                    copy.create_function("row_checksum", -1, row_checksum, deterministic=True)
                    database.backup(copy)
                    database.close()
                    database = copy
                _migrate(path, database, version)
        return Store(path, database)
    except BaseException:
        database.close()
        raise


def create_store(path: Path, plan: Plan) -> None:
    """Make a new ledger."""
    if path.exists():
        raise LedgerError(f"{path} exists already; use --resume to go on with that run")
    if problem := plan.problem():
        raise LedgerError(problem)
    # A reader must never see a ledger without its tables.
    partial = partial_name(path)
    for left_behind in path.parent.glob(f"{partial.name}*"):
        left_behind.unlink()
    meta = {"format_version": FORMAT_VERSION, "driftproof": __version__, "plan": plan.to_json(), "state": RUNNING}
    meta |= dict.fromkeys(("step", "durable_step", "published_step", "pruned_step", "furthest_step"), 0)
    rows = [(key, str(value), row_checksum(key, str(value))) for key, value in meta.items()]
    with closing(_connect(partial, [CREATE])) as database:
        database.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
        database.executemany("INSERT INTO meta VALUES (?, ?, ?)", rows)
        database.execute("COMMIT")
    partial.rename(path)


def channel_problem(plan: Plan, group: Group) -> str:
    """Empty where a group carries exactly the planned channels, else what is wrong."""
    wanted, there = Channel.BEHAVIOR_LOGPROBS in plan.channels, group.behavior_logprobs is not None
    if wanted and not there:
        return "the objective needs behavior_logprobs and the group has none"
    return "the group carries behavior_logprobs, which are not needed" if there and not wanted else ""


def read_plan(path: Path, meta: Mapping[str, str]) -> Plan:
    """The plan that `meta` holds; a LedgerError where it is none, or says what this driftproof does not know."""
    text = meta.get("plan", "")
    # In format 2 the plan alone had a checksum.
    if meta.get("plan_checksum", str(zlib.crc32(text.encode()))) != str(zlib.crc32(text.encode())):
        raise damaged(path, "the plan's checksum does not agree")
    try:
        if unknown := sorted(json.loads(text).keys() - Plan.__dataclass_fields__.keys()):
            made = meta.get("driftproof", "a newer one")
            raise LedgerError(
                f"the plan of {path} has {', '.join(unknown)}, which driftproof {__version__} does not know; it was "
                f"made by driftproof {made}: install that or a later one (pip install -U driftproof)"
            )
        return Plan.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(path, f"the plan cannot be read: {error}") from error


def check_format(path: Path, meta: Mapping[str, str]) -> int:
    """The format of a ledger; a LedgerError where this driftproof does not know it."""
    version = str(meta.get("format_version", ""))[:DIGITS]
    if version.isdecimal() and 1 <= int(version) <= FORMAT_VERSION:
        return int(version)
    if version.isdecimal():
        made = meta.get("driftproof", "a newer one")
        raise LedgerError(
            f"{path} has ledger format {version}, made by driftproof {made}; this is driftproof {__version__}, which "
            f"reads formats 1 to {FORMAT_VERSION}: install driftproof {made} or later (pip install -U driftproof)"
        )
    raise damaged(path, f"its format is {version or 'missing'}")


def damaged(path: Path, what: str) -> LedgerError:
    """The error of a ledger that does not hold what was written, and what to do about it."""
    run = path.absolute().parent
    return LedgerError(
        f"{path} is damaged ({what}); see what is wrong: {command_line('driftproof', 'ledger', 'check', run)}; "
        f"save what can be saved: {command_line('driftproof', 'ledger', 'repair', run)}"
    )


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Makes a LedgerError of what SQLite says of a damaged file."""
    try:
        yield
    except UNREADABLE as error:
        if isinstance(error, sqlite3.ProgrammingError) or _code(error) & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        raise damaged(path, str(error)) from error


def _connect(path: Path, modes: Sequence[str]) -> sqlite3.Connection:
    """A connection in the first of these modes that SQLite can open."""
    problem: Exception | None = None
    for mode in modes:
        try:
            uri = f"{path.absolute().as_uri()}?{mode}"
            database = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
            database.create_function("row_checksum", -1, row_checksum, deterministic=True)
            for statement in WRITE if mode == CREATE else READ:
                database.execute(statement).fetchall()
            return database
        except sqlite3.OperationalError as error:
            problem = problem or error
        except sqlite3.DatabaseError as error:
            raise _no_ledger(path, error) from error
    if CREATE in modes:
        raise LedgerError(f"cannot open {path}: {problem}; is the directory writable, and is there space?") from problem
    raise LedgerError(
        f"cannot read {path}: {problem}; where its directory cannot be written and {path.name}-wal lies beside it, "
        "copy the directory to a place that can be written"
    )


def _reading(path: Path, untouched: bool) -> list[str]:
    """Modes to read in; an immutable file is read without a log, and without the files that reading one takes."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        return ["mode=ro"]
    return ["mode=ro&immutable=1"] if untouched and not log.exists() else ["mode=ro", "mode=ro&immutable=1"]


def _code(error: Exception) -> int:
    """SQLite's code of an error; that of a text which is no text any more is missing."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT))


def _no_ledger(path: Path, error: sqlite3.DatabaseError) -> LedgerError:
    if _code(error) not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return damaged(path, str(error))
    run = path.absolute().parent
    return LedgerError(
        f"{path} is not a driftproof ledger ({error}); if it was one, start again from the run's newest checkpoint: "
        f"{command_line('driftproof', 'ledger', 'repair', run)}"
    )


def _format(path: Path, database: sqlite3.Connection) -> int:
    try:
        meta = dict(database.execute("SELECT key, value FROM meta"))
    except sqlite3.OperationalError as error:
        raise _no_ledger(path, error) from error
    version = check_format(path, meta)
    # Before anything is changed.
    read_plan(path, meta)
    return version


def _migrate(path: Path, database: sqlite3.Connection, version: int) -> None:
    try:
        migrate(database)
    except sqlite3.OperationalError as error:
        problem = f"has ledger format {version} and cannot be brought to {FORMAT_VERSION}: {error}"
        raise LedgerError(f"{path} {problem}; is there space on the disk?") from error
    except sqlite3.IntegrityError as error:
        raise damaged(path, str(error)) from error
