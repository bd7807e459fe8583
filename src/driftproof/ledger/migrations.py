"""How a ledger of an older format becomes one of today's.

Guarantees: each migration is one transaction that excludes every other process, so a ledger is of one format or the
next and never between; whoever opens it meanwhile waits, and finds it migrated. What was damaged before stays readable
as far as it was, and is found as before.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from driftproof import __version__
from driftproof.ledger.codec import OLD_CONTENT, figures, row_checksum
from driftproof.ledger.schema import CONTENT, FORMAT_VERSION, TABLES

OLD_COLUMNS = ", ".join(CONTENT[:OLD_CONTENT])
# SQLite gives `message` from the row of the greatest id.
COUNT_EVENTS = (
    "INSERT INTO event_kinds SELECT kind, count, message FROM "
    "(SELECT kind, count(*) AS count, message, max(id) FROM events GROUP BY kind)"
)


def migrate(database: sqlite3.Connection) -> None:
    """Bring a ledger of an older format to today's; nothing where it is."""
    while (version := _format_of(database)) < FORMAT_VERSION:
        database.execute("BEGIN EXCLUSIVE")
        try:
            # Another process may have done it while this one waited.
            if _format_of(database) == version:
                MIGRATIONS[version](database)
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")


def _format_of(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT value FROM meta WHERE key = 'format_version'").fetchone()[0])


def _from_1(database: sqlite3.Connection) -> None:
    """Checksums of contents, and events that are counted by kind."""
    for statement in (
        "ALTER TABLE groups ADD COLUMN checksum INTEGER",
        "CREATE TABLE event_kinds (kind TEXT PRIMARY KEY, count INTEGER NOT NULL, message TEXT NOT NULL) WITHOUT ROWID",
        COUNT_EVENTS,
        "DROP INDEX events_kind",
        "INSERT INTO meta VALUES ('pruned_step', '0')",
        "INSERT OR REPLACE INTO meta VALUES ('format_version', '2')",
    ):
        database.execute(statement)


def _from_2(database: sqlite3.Connection) -> None:
    """A checksum for every row; narrow groups beside what they hold; the weights' step."""
    for index in ("leased", "ready", "trained"):
        database.execute(f"DROP INDEX groups_{index}")
    old = ("meta", "groups", "steps", "evaluations", "workers")
    for table in old:
        database.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    for statement in TABLES.split(";\n"):
        database.execute(statement)
    _copy_meta(database)
    _copy_groups(database)
    for table, columns in {"steps": "step, metrics", "evaluations": "name, step, result"}.items():
        database.execute(f"INSERT INTO {table} SELECT {columns}, row_checksum({columns}) FROM old_{table}")
    database.execute("INSERT INTO workers SELECT worker, counters, row_checksum(worker, counters) FROM old_workers")
    for table in old:
        database.execute(f"DROP TABLE old_{table}")


def _copy_meta(database: sqlite3.Connection) -> None:
    gone = "'plan_checksum', 'checked_from'"
    meta = dict(database.execute(f"SELECT key, value FROM old_meta WHERE key NOT IN ({gone})"))
    meta |= {"format_version": "3", "driftproof": __version__, "published_step": meta.get("step", "0")}
    meta.setdefault("durable_step", "0")
    # How far admission had gone was not known in format 1.
    meta.setdefault("furthest_step", str(json.loads(meta["plan"])["steps"]))
    rows = [(key, value, row_checksum(key, value)) for key, value in meta.items()]
    database.executemany("INSERT INTO meta VALUES (?, ?, ?)", rows)


def _copy_groups(database: sqlite3.Connection) -> None:
    fixed = "dispatch, prompt_index, state, worker, dispatched_step, trained_step, deadline, checksum"
    question = f"SELECT {fixed}, response_tokens, rewards, finish_reasons FROM old_groups ORDER BY dispatch"
    insert = f"INSERT INTO groups VALUES ({', '.join('?' * 17)})"
    for dispatch, prompt, state, worker, since, trained_step, deadline, crc, *content in database.execute(question):
        row = (dispatch, prompt, state, worker, since, None, trained_step, *_figures(*content), crc)
        database.execute(insert, (*row, row_checksum(*row), deadline))
    written = f"SELECT dispatch, {OLD_COLUMNS} FROM old_groups WHERE prompt_tokens IS NOT NULL"
    database.execute(f"INSERT INTO contents (dispatch, {OLD_COLUMNS}) {written}")


def _figures(tokens: Any, rewards: Any, reasons: Any) -> tuple[Any, ...]:
    """The columns of `groups` from `responses` to `unrewarded`; all NULL where there is nothing, or nothing whole."""
    try:
        return figures(np.frombuffer(rewards, np.float64), len(tokens) // 4, json.loads(reasons))
    except (ValueError, TypeError, AttributeError):
        return (None,) * 7


MIGRATIONS: Mapping[int, Callable[[sqlite3.Connection], None]] = {1: _from_1, 2: _from_2}
"""From format n to n + 1, inside a transaction."""
