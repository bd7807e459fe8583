"""The message for a name that does not exist: it always lists the valid ones and suggests the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """For example `unknown task 'arithmetics'; did you mean 'arithmetic'? valid: arithmetic, gsm8k`."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    suggestion = f" did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r};{suggestion} valid: {', '.join(names)}"
