"""How a group becomes rows, and the checksums of rows.

Guarantees: what `read_group` returns is what was committed, bit for bit, where the content has a checksum.
"""

import json
import math
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftproof.errors import DamageError
from driftproof.ledger.schema import CONTENT, STATE, TRAINED_STEP
from driftproof.types import FinishReason, Group

OLD_CONTENT = CONTENT.index("trained_mask")
"""Number of columns of `contents` that formats 1 and 2 had, too."""
NOTHING = (None,) * (len(CONTENT) - OLD_CONTENT)


def to_row(group: Group) -> tuple[Any, ...]:
    """The `CONTENT` columns of a group."""
    mask = group.trained
    return (
        _bytes(group.prompt_tokens, np.int32),
        _bytes(group.response_tokens, np.int32),
        _bytes(group.response_lengths, np.int32),
        _bytes(group.rewards, np.float64),
        _reasons_text(group.finish_reasons),
        json.dumps(group.problems) if group.problems else None,
        None if group.behavior_logprobs is None else _bytes(group.behavior_logprobs, np.float32),
        int(group.retokenized),
        None if mask is None else np.packbits(mask).tobytes(),
        None if group.sequence_of is None else _bytes(group.sequence_of, np.int32),
        None if group.facts is None else json.dumps(group.facts),
    )


def read_group(prompt_index: int, row: Sequence[Any], expected: int | None) -> Group:
    """The group of a row's `CONTENT` columns, whose checksum is `expected` (None: it has none); else a DamageError."""
    if expected is not None and content_checksum(row) != expected:
        raise DamageError("its checksum does not agree")
    # A checksum that agrees says that the group was checked when it was made.
    make: Callable[..., Group] = Group if expected is None else Group.unchecked
    try:
        prompt, tokens, lengths, rewards, reasons, problems, logprobs, retokenized, mask, sequence_of, facts = row
        return make(
            prompt_index=prompt_index,
            prompt_tokens=np.frombuffer(prompt, np.int32),
            response_tokens=np.frombuffer(tokens, np.int32),
            response_lengths=np.frombuffer(lengths, np.int32),
            rewards=np.frombuffer(rewards, np.float64),
            finish_reasons=_reasons(reasons),
            problems=tuple(json.loads(problems)) if problems else (),
            behavior_logprobs=None if logprobs is None else np.frombuffer(logprobs, np.float32),
            retokenized=bool(retokenized),
            trained=None if mask is None else _unpacked(mask, len(tokens) // 4),
            sequence_of=None if sequence_of is None else np.frombuffer(sequence_of, np.int32),
            facts=None if facts is None else json.loads(facts),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise DamageError(f"it is no group: {error}") from error


def figures(rewards: NDArray[np.float64], tokens: int, reasons: Sequence[str]) -> tuple[Any, ...]:
    """The columns of `groups` from `responses` to `unrewarded`."""
    given = [reward for reward in rewards.tolist() if math.isfinite(reward)]
    mean = sum(given) / len(given) if given else None
    return (
        len(rewards),
        tokens,
        mean,
        None if mean is None else math.sqrt(sum((reward - mean) * (reward - mean) for reward in given) / len(given)),
        reasons.count(FinishReason.LENGTH),
        reasons.count(FinishReason.FAILED),
        len(rewards) - len(given),
    )


def figures_of(group: Group) -> tuple[Any, ...]:
    """The columns of `groups` from `responses` to `unrewarded`, for a whole group."""
    return figures(group.rewards, len(group.response_tokens), group.finish_reasons)


def with_state(row: Sequence[Any], state: str, trained_step: int | None = None) -> tuple[Any, ...]:
    """A row of the columns `ROW` in another state."""
    between = row[STATE + 1 : TRAINED_STEP]
    return (*row[:STATE], state, *between, trained_step, *row[TRAINED_STEP + 1 :])


def content_checksum(row: Sequence[Any]) -> int:
    """CRC-32 of a row's `CONTENT` columns; where one ends and the next begins counts.

    What formats 1 and 2 did not have counts only where it is there, so that their checksums stay right.
    """
    columns = row if tuple(row[OLD_CONTENT:]) != NOTHING else row[:OLD_CONTENT]
    return zlib.crc32(b"".join(map(_part, columns)))


def row_checksum(*columns: Any) -> int:
    """CRC-32 of a row of numbers, texts and NULLs; also a function of the ledger's SQL."""
    return zlib.crc32(ascii(columns).encode())


def _part(column: Any) -> bytes:
    """A column for a checksum, its length before it."""
    if type(column) is not bytes:
        return _shown(column)
    return len(column).to_bytes(8, "little") + column


# The same few texts and numbers stand in most groups.
@lru_cache(maxsize=1024, typed=True)
def _shown(column: Any) -> bytes:
    return _part(repr(column).encode(errors="replace"))


def _bytes(values: NDArray[Any], dtype: type[np.generic]) -> bytes:
    return np.ascontiguousarray(values, dtype).tobytes()


_reasons_text = lru_cache(json.dumps)


@lru_cache
def _reasons(text: str) -> tuple[FinishReason, ...]:
    return tuple(map(FinishReason, json.loads(text)))


def _unpacked(mask: bytes, count: int) -> NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(mask, np.uint8))
    if not count <= len(bits) < count + 8:
        raise ValueError(f"{len(bits)} bits for {count} tokens")
    return bits[:count].astype(bool)
