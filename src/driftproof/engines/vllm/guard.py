"""Runs a command in a process group of its own and leaves nothing of it behind.

`python guard.py COMMAND...` ends with the command. When standard input closes, because whoever holds the other end
closed it or died, and on SIGTERM, the whole group is asked to end, and killed where it does not within `GRACE_SECONDS`.
Standard library only, and one thread.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

GRACE_SECONDS = 10.0
_TICK_SECONDS = 0.1


def guard(command: Sequence[str]) -> int:
    """The exit code of `command`."""
    asked: list[int] = []
    # Handlers, unlike SIG_IGN, are not passed on to the command.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None and signal.SIGTERM not in asked and not _closed():
            pass
    finally:
        _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(_TICK_SECONDS)
        _signal_group(process.pid, signal.SIGKILL)
    return process.wait()


def _closed() -> bool:
    """Whether standard input was closed; waits a moment for it."""
    ready, _, _ = select.select([sys.stdin], [], [], _TICK_SECONDS)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
