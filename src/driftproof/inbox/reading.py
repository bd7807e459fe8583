"""Groups out of the body of a request, one after the other.

Guarantees: a body takes no more memory than its bytes and the values of one group of this run; the first fault that
leaves the rest unreadable ends it; a group that is merely wrong costs the others nothing.
"""

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any

from driftproof.inbox import messages

TOKEN_BYTES = 128
"""Bytes of a token in a body: its id and its log-prob, or its text, white space included."""
RESPONSE_BYTES = 1024
"""Bytes of a response in a body beside its tokens."""

_SPACE = rb"[ \t\r\n]{0,1000}"
_OPENING = re.compile(rb"%s\{%s\"groups\"%s:%s\[%s" % ((_SPACE,) * 5))
_BETWEEN = re.compile(rb"%s([,\]])%s" % (_SPACE, _SPACE))
_CLOSING = re.compile(rb"\}%s" % _SPACE)


class BodyError(ValueError):
    """A body of which nothing is recorded; `status` is that of HTTP."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSize:
    """The size of a run's groups."""

    samples: int
    max_tokens: int

    @property
    def bytes(self) -> int:
        """The most that a group takes in a body."""
        return RESPONSE_BYTES + self.samples * (RESPONSE_BYTES + TOKEN_BYTES * self.max_tokens)

    @property
    def body_bytes(self) -> int:
        """The most that a body of groups takes."""
        return RESPONSE_BYTES + messages.MAX_GROUPS * self.bytes

    def __str__(self) -> str:
        return f"{self.samples} responses of {self.max_tokens} tokens"


def read_groups(body: bytes, size: GroupSize) -> list[messages.GroupMessage | messages.Refusal]:
    """The groups of a body, `{"groups": [...]}`, each well-formed or a refusal; BodyError where it cannot be read."""
    opening = _OPENING.match(body)
    if opening is None:
        raise BodyError('the body must be one JSON object of one field: {"groups": [...]}')
    place, found, more = opening.end(), list[messages.GroupMessage | messages.Refusal](), b","
    if body[place : place + 1] == b"]":
        raise BodyError("groups: at least one belongs in a request")
    while more == b",":
        if len(found) == messages.MAX_GROUPS:
            raise BodyError(f"groups: at most {messages.MAX_GROUPS} in one request; send fewer at once")
        value, length = _read_value(body, place, f"groups[{len(found)}]", size)
        found.append(messages.read_group(value, size.max_tokens))
        between = _BETWEEN.match(body, place + length)
        if between is None:
            raise BodyError(f"the body is not JSON, byte {place + length}: ',' or ']' belongs behind a group")
        place, more = between.end(), between[1]
    if _CLOSING.fullmatch(body, place) is None:
        raise BodyError("the body must be one JSON object of one field, groups, and end behind it")
    return found


def _read_value(body: bytes, place: int, where: str, size: GroupSize) -> tuple[Any, int]:
    """The JSON value that begins at a byte of the body, and its length in bytes."""
    piece = body[place : place + size.bytes]
    try:
        text, _ = codecs.utf_8_decode(piece, "strict", False)
        value, end = json.JSONDecoder().raw_decode(text)
    except UnicodeDecodeError as error:
        raise BodyError(f"the body is not UTF-8, byte {place + error.start}") from error
    except json.JSONDecodeError as error:
        if place + size.bytes < len(body):
            raise BodyError(
                f"{where}: not JSON, or more than {size.bytes:,} bytes, the most that a group of this run can have "
                f"({size})",
                413,
            ) from error
        at = place + len(text[: error.pos].encode(errors="surrogatepass"))
        raise BodyError(f"the body is not JSON, byte {at}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise BodyError(f"{where}: {error}") from error
    return value, len(text[:end].encode(errors="surrogatepass"))
