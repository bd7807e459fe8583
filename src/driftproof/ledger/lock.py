"""Only one driftproof at a time works on a run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEDGER = "ledger.sqlite"
"""The ledger's name in a run's directory."""


class InUseError(ValueError):
    """A directory that is no run, or a run that another driftproof is working on."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep every other driftproof from working on a run; given back when this process dies, too.

    Raises:
        InUseError: see there.
    """
    if not (run / LEDGER).is_file():
        raise InUseError(f"{run} is not a run: it has no {LEDGER}")
    descriptor = os.open(run / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InUseError(f"{run} is in use by another driftproof; wait for it, or stop it first") from None
    try:
        yield
    finally:
        os.close(descriptor)
