"""Ledgers that are changed behind driftproof's back, with checksums that agree."""

import sqlite3
from pathlib import Path

from driftproof.ledger.codec import row_checksum
from driftproof.ledger.schema import CONTENT, ROW


def changed(**expressions: str) -> str:
    """The assignments of an UPDATE of `groups` that sets these columns, and its checksum with them."""
    columns = ", ".join(expressions.get(column, column) for column in ROW)
    assignments = [f"{column} = {expression}" for column, expression in expressions.items()]
    return ", ".join([*assignments, f"checksum = row_checksum({columns})"])


UNTRAINED = f"UPDATE groups SET {changed(state=repr('ready'), trained_step='NULL')}"


def tamper(path: Path, *statements: str) -> None:
    """Execute statements, which may call `row_checksum`; each changes something."""
    database = sqlite3.connect(path)
    database.create_function("row_checksum", -1, row_checksum)
    for statement in statements:
        assert database.execute(statement).rowcount > 0
    database.commit()
    database.close()


def with_content_of(other: int, dispatch: int) -> tuple[str, str]:
    """Statements that give a group what another holds."""
    columns = ", ".join(CONTENT)
    checksum = changed(content_checksum=f"(SELECT content_checksum FROM groups WHERE dispatch = {other})")
    return (
        f"INSERT OR REPLACE INTO contents SELECT {dispatch}, {columns} FROM contents WHERE dispatch = {other}",
        f"UPDATE groups SET {checksum} WHERE dispatch = {dispatch}",
    )
