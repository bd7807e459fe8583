"""A local process of a run, from its first line to its last.

It leaves signals to its parent, writes to a log of its own, there also the stacks of its threads when it is asked for
them with SIGUSR1, and tells its parent in a sentence what ended it where there is one. When its parent is gone it asks
the run to stop, and ends; nothing goes on unseen.
"""

import errno
import faulthandler
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from driftproof.errors import DriftproofError, EngineError, InputError
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import FINISHED, STOPPING
from driftproof.run import RunDirectory, hold_run_lock
from driftproof.runtime.activity import ActivityFile
from driftproof.runtime.placement.protocol import STOP_SECONDS, Resources, Role
from driftproof.runtime.processes import play
from driftproof.text import printable_lines

STACKS = signal.SIGUSR1
"""Makes a process write the stacks of its threads to its log."""
LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that the command answers for all of its processes."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A process's account of what ended it."""

    sentence: str
    refused_input: bool

    def to_bytes(self) -> bytes:
        # A pipe takes that much without a reader.
        return (b"1" if self.refused_input else b"0") + self.sentence.encode(errors="backslashreplace")[:10_000]

    @classmethod
    def from_bytes(cls, told: bytes) -> Self:
        return cls(sentence=told[1:].decode(errors="replace"), refused_input=told[:1] == b"1")


def main(role: Role, path: Path, name: str, resources: Resources, parent: Connection) -> None:
    """The whole life of a process; `parent` is the end of a pipe for the sentence that says what ended it."""
    directory = RunDirectory(path=path)
    _look_after_ourselves(directory, name)
    try:
        play(role, directory, name, resources, ActivityFile(directory.activity(name)))
    except (ValueError, OSError, RuntimeError, sqlite3.Error) as error:
        # The log may be on the disk that is full.
        with suppress(OSError):
            print(printable_lines(traceback.format_exc()), file=sys.stderr)
        sentence = str(error) if isinstance(error, DriftproofError) else write_trouble(error, path)
        if sentence:
            parent.send_bytes(
                Ending(sentence=sentence, refused_input=isinstance(error, InputError | EngineError)).to_bytes()
            )
        sys.exit(1)


def _look_after_ourselves(directory: RunDirectory, name: str) -> None:
    for number in LEFT_TO_PARENT:
        # A handler, unlike SIG_IGN or a mask, is not passed on to what a verifier starts.
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_PARENT)
    log = os.open(directory.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    faulthandler.register(STACKS, sys.stderr, all_threads=True)
    hold_run_lock(directory.path)
    parent = multiprocessing.parent_process()
    # A command that was killed before this process began may have been followed by another.
    if parent is None or not parent.is_alive():
        sys.exit("the command that started this process has ended; so does it")
    threading.Thread(target=_watch_parent, args=(directory,), daemon=True).start()


def _watch_parent(directory: RunDirectory) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    try:
        with Ledger(directory.ledger) as ledger:
            if ledger.state() != FINISHED:
                ledger.set_state(STOPPING)
        time.sleep(STOP_SECONDS)
    finally:
        # Whatever the main thread waits for: nobody is left to notice.
        os._exit(1)


def write_trouble(error: Exception, run: Path) -> str | None:
    """The sentence for an error of the disk or of the ledger; None for any other."""
    if isinstance(error, sqlite3.OperationalError):
        held = "; a process of the run has held it for a minute" if "locked" in str(error) else ""
        return f"the ledger of {run} cannot be written: {error}{held}"
    if isinstance(error, sqlite3.DatabaseError):
        return f"the ledger of {run} is damaged: {error}"
    if isinstance(error, OSError) and (error.errno in _DISK or type(error) is OSError):
        return f"{error.filename or run} cannot be written: {error.strerror or error}"
    return None
