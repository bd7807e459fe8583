"""How a ledger of an older format becomes one of today's.

Guarantees: each migration is one transaction that excludes every other process, so a ledger is of one format or the
next and never between; whoever opens it meanwhile waits, and finds it migrated.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from driftproof import __version__
from driftproof.ledger.schema import FORMAT_VERSION

MIGRATIONS: Mapping[int, Sequence[str]] = {
    1: (
        "ALTER TABLE groups ADD COLUMN checksum INTEGER",
        "CREATE TABLE event_kinds (kind TEXT PRIMARY KEY, count INTEGER NOT NULL, message TEXT NOT NULL) WITHOUT ROWID",
        # SQLite gives `message` from the row of the greatest id.
        "INSERT INTO event_kinds SELECT kind, count, message FROM "
        "(SELECT kind, count(*) AS count, message, max(id) FROM events GROUP BY kind)",
        "DROP INDEX events_kind",
        "INSERT INTO meta VALUES ('pruned_step', '0')",
        # What was dispatched before may have no checksum.
        "INSERT INTO meta SELECT 'checked_from', coalesce(max(dispatch), -1) + 1 FROM groups",
    ),
}
"""From format n to n + 1, statement by statement."""


def migrate(database: sqlite3.Connection) -> None:
    """Bring a ledger of an older format to today's; nothing where it is."""
    while (version := _format_of(database)) < FORMAT_VERSION:
        database.execute("BEGIN EXCLUSIVE")
        try:
            # Another process may have done it while this one waited.
            if _format_of(database) == version:
                for statement in MIGRATIONS[version]:
                    database.execute(statement)
                database.executemany(
                    "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                    [("format_version", str(version + 1)), ("driftproof", __version__)],
                )
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")


def _format_of(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT value FROM meta WHERE key = 'format_version'").fetchone()[0])
