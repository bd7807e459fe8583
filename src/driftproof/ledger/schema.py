"""The tables of the ledger, and how a group becomes a row.

Guarantees: what `read_group` returns is what was committed, bit for bit, where the row has a checksum.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from driftproof.errors import DamageError
from driftproof.types import FinishReason, Group

FORMAT_VERSION = 2

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE groups (
    dispatch INTEGER PRIMARY KEY,      -- n-th dispatch, 0-based
    prompt_index INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('leased', 'ready', 'trained')),
    worker TEXT NOT NULL,              -- who holds the lease, or who committed
    deadline REAL NOT NULL,            -- monotonic seconds
    dispatched_step INTEGER NOT NULL,  -- learner step when the lease was given
    trained_step INTEGER,              -- the step that trained it
    prompt_tokens BLOB,                -- int32
    response_tokens BLOB,              -- int32, responses one behind the other
    response_lengths BLOB,             -- int32
    rewards BLOB,                      -- float64, NaN: no reward
    finish_reasons TEXT,               -- JSON list
    problems TEXT,                     -- JSON list, NULL: none
    behavior_logprobs BLOB,            -- float32, NULL: the objective does not need them
    retokenized INTEGER,
    checksum INTEGER                   -- of the content, from prompt_tokens on; NULL where it was written in format 1
);
CREATE INDEX groups_leased ON groups (dispatch) WHERE state = 'leased';
CREATE INDEX groups_ready ON groups (dispatch) WHERE state = 'ready';
CREATE INDEX groups_trained ON groups (trained_step) WHERE state = 'trained';

CREATE TABLE steps (step INTEGER PRIMARY KEY, metrics TEXT NOT NULL);
CREATE TABLE evaluations (name TEXT NOT NULL, step INTEGER NOT NULL, result TEXT NOT NULL, PRIMARY KEY (name, step));
CREATE TABLE workers (worker TEXT PRIMARY KEY, counters TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL,
                     message TEXT NOT NULL);
CREATE TABLE event_kinds (kind TEXT PRIMARY KEY, count INTEGER NOT NULL, message TEXT NOT NULL) WITHOUT ROWID;
"""

CONTENT = (
    "prompt_tokens, response_tokens, response_lengths, rewards, finish_reasons, problems, behavior_logprobs, "
    "retokenized"
)
COLUMNS = tuple(CONTENT.split(", "))


def to_row(group: Group) -> tuple[Any, ...]:
    """The `CONTENT` columns of a group."""
    logprobs = group.behavior_logprobs
    return (
        np.ascontiguousarray(group.prompt_tokens, np.int32).tobytes(),
        np.ascontiguousarray(group.response_tokens, np.int32).tobytes(),
        np.ascontiguousarray(group.response_lengths, np.int32).tobytes(),
        np.ascontiguousarray(group.rewards, np.float64).tobytes(),
        json.dumps(group.finish_reasons),
        json.dumps(group.problems) if group.problems else None,
        None if logprobs is None else np.ascontiguousarray(logprobs, np.float32).tobytes(),
        int(group.retokenized),
    )


def from_row(prompt_index: int, row: Sequence[Any]) -> Group:
    """The group of a row's `CONTENT` columns."""
    prompt_tokens, tokens, lengths, rewards, finish_reasons, problems, logprobs, retokenized = row
    return Group(
        prompt_index=prompt_index,
        prompt_tokens=np.frombuffer(prompt_tokens, np.int32),
        response_tokens=np.frombuffer(tokens, np.int32),
        response_lengths=np.frombuffer(lengths, np.int32),
        rewards=np.frombuffer(rewards, np.float64),
        finish_reasons=tuple(map(FinishReason, json.loads(finish_reasons))),
        problems=tuple(json.loads(problems)) if problems else (),
        behavior_logprobs=None if logprobs is None else np.frombuffer(logprobs, np.float32),
        retokenized=bool(retokenized),
    )


def checksum(row: Sequence[Any]) -> int:
    """CRC-32 of a row's `CONTENT` columns; where one ends and the next begins counts."""
    value = 0
    for column in row:
        part = column if isinstance(column, bytes) else repr(column).encode(errors="replace")
        value = zlib.crc32(part, zlib.crc32(len(part).to_bytes(8, "little"), value))
    return value


def read_group(prompt_index: int, row: Sequence[Any], expected: int | None) -> Group:
    """The group of a row's `CONTENT` columns, whose checksum is `expected`; None: it has none.

    Raises:
        DamageError: the checksum differs, or the columns are no group.
    """
    if expected is not None and checksum(row) != expected:
        raise DamageError("its checksum does not agree")
    try:
        return from_row(prompt_index, row)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamageError(f"it is no group: {error}") from error
