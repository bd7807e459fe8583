"""Only one driftproof at a time works on a run, with all its processes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LEDGER = "ledger.sqlite"
"""The ledger's name in a run's directory."""
PROCESSES = "processes.lock"
"""Shared by all processes of a run as long as they live."""
ORPHAN_SECONDS = 150.0
"""How long to wait for processes whose command was killed: they end within two minutes."""


class UnavailableError(ValueError):
    """A directory that is no run, a run that another driftproof is working on, or one that cannot be written."""


@contextmanager
def locked(run: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Keep every other driftproof from working on a run; given back when this process dies, too.

    Processes of a driftproof that was killed are waited for: they may be in the middle of a step.

    Args:
        say: what is waited for is told to.

    Raises:
        UnavailableError: see there.
    """
    if not (run / LEDGER).is_file():
        raise UnavailableError(f"{run} is not a run: it has no {LEDGER}")
    try:
        descriptor = os.open(run / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UnavailableError(f"run directory {run} cannot be written: {error.strerror}") from error
    try:
        if not _taken(descriptor):
            raise UnavailableError(f"{run} is in use by another driftproof; wait for it, or stop it first")
        _wait_for_orphans(run, say)
        yield
    finally:
        os.close(descriptor)


def belong_to(run: Path) -> None:
    """Keep everyone from working on a run until this process ends, however it does."""
    fcntl.flock(os.open(run / PROCESSES, os.O_RDWR | os.O_CREAT, 0o644), fcntl.LOCK_SH)


def _wait_for_orphans(run: Path, say: Callable[[str], None]) -> None:
    deadline, told = time.monotonic() + ORPHAN_SECONDS, False
    with (run / PROCESSES).open("w") as shared:
        while not _taken(shared.fileno()):
            if not told:
                say(f"waiting for processes of an earlier driftproof, which still work on {run}, to end")
                told = True
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"processes of an earlier driftproof still work on {run} after {ORPHAN_SECONDS:.0f} s (they hold "
                    f"its {PROCESSES}); end them first"
                )
            time.sleep(0.05)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
