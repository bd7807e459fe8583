"""Processes on this machine, forked from a server that has imported torch and transformers already.

Guarantees: whatever happens to this process, none of its processes is left behind; how each ended is known, in its own
words where it had any.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from driftproof.errors import ConfigError
from driftproof.run import RunDirectory
from driftproof.runtime.activity import Activity
from driftproof.runtime.placement.child import LEFT_TO_PARENT, STACKS, Ending, main
from driftproof.runtime.placement.protocol import Resources, Role

ANSWER_SECONDS = 3.0
"""How long a process may take to write its stacks."""
LAST_LINES = 12
"""Lines of its log that stand for the last words of a process that had none."""
PRELOADED = ("driftproof.runtime.processes", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")


LONGEST_DIRECTORY = 75
"""Bytes of a directory in which a socket can be made: an address has 107, of which its name takes 32."""


def warm_up() -> None:
    """Let the server that the processes are forked from import what they need, while this process does other things.

    Raises:
        ConfigError: there is no directory that a socket can be made in.
    """
    _choose_directory_of_sockets()
    # A signal to the whole process group, as a terminal sends it, must not end that server, nor show where its imports
    # are: how its children end could not be known. What is blocked stays so in a new program; here it comes in later.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)
    try:
        resource_tracker.ensure_running()
        # That has lifted the mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)
        multiprocessing.set_forkserver_preload(list(PRELOADED))
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def abandon() -> None:
    """End the server that `warm_up` started, in the middle of its imports; nothing has been forked from it."""
    server = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    if server is not None:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


def _choose_directory_of_sockets() -> None:
    """Keep multiprocessing's sockets out of a directory for temporary files whose path is too long for an address."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST_DIRECTORY:
        return
    places = ("/tmp", "/var/tmp", "/dev/shm", str(Path.cwd()))
    short = next((place for place in places if len(os.fsencode(place)) <= LONGEST_DIRECTORY and _writable(place)), None)
    if short is None:
        raise ConfigError(
            f"the directory for temporary files, {usual}, has a path of {len(os.fsencode(usual))} bytes, and sockets "
            f"between processes take at most {LONGEST_DIRECTORY}: set TMPDIR to a shorter one"
        )
    chosen, tempfile.tempdir = tempfile.tempdir, short
    try:
        util.get_temp_dir()
    finally:
        tempfile.tempdir = chosen


def _writable(place: str) -> bool:
    return os.access(place, os.W_OK | os.X_OK)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlacement:
    """Starts processes of the run in a directory."""

    directory: RunDirectory

    def start(self, role: Role, name: str, resources: Resources) -> LocalMember:
        context = multiprocessing.get_context("forkserver")
        log, activity = self.directory.log(name), self.directory.activity(name)
        # Earlier processes of that name wrote to the same files.
        activity.unlink(missing_ok=True)
        log_begins = _size(log)
        ours, theirs = context.Pipe(duplex=False)
        arguments = (role, self.directory.path, name, resources, theirs)
        process = context.Process(target=main, args=arguments, name=name, daemon=True)
        process.start()
        theirs.close()
        return LocalMember(process, log, log_begins, activity, last_words=ours)


@dataclass(slots=True, eq=False)
class LocalMember:
    """One process."""

    process: BaseProcess
    log: Path
    log_begins: int
    """Length of the log before the process was started."""
    told: Path
    """The file of its activity."""
    last_words: Connection
    """The end of the pipe by which it says what ended it."""
    _told: Ending | None = None

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    @property
    def where(self) -> str:
        return f"pid {self.pid}"

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    @property
    def paused(self) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        # The name, in parentheses, may hold anything.
        return status.rpartition(")")[2].split()[0] == "T"

    def activity(self) -> Activity | None:
        return Activity.read(self.told)

    def wait(self, seconds: float) -> None:
        self.process.join(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def last_error(self) -> str | None:
        code = self.process.exitcode
        if not code:
            return None
        if ending := self._ending():
            return f"ended: {ending.sentence}"
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"

    @property
    def refused_input(self) -> bool:
        ending = self._ending()
        return ending is not None and ending.refused_input

    def _ending(self) -> Ending | None:
        with suppress(EOFError):
            if self._told is None and self.last_words.poll():
                self._told = Ending.from_bytes(self.last_words.recv_bytes())
        return self._told

    def last_output(self) -> str:
        lines = [] if self._ending() else _written(self.log, self.log_begins).splitlines()
        return "\n".join([f"the end of {self.log}:", *lines[-LAST_LINES:]]) if lines else ""

    def stacks(self) -> str:
        begun, paused, text = _size(self.log), self.paused, ""
        try:
            os.kill(self.pid, STACKS)
            if paused:
                os.kill(self.pid, signal.SIGCONT)
        except ProcessLookupError:
            return ""
        deadline = time.monotonic() + ANSWER_SECONDS
        # The main thread comes last, and ends with the module that was started.
        while "in <module>\n" not in text and time.monotonic() < deadline:
            time.sleep(0.05)
            text = _written(self.log, begun)
        start = re.search(r"^(Current thread|Thread) 0x", text, re.MULTILINE)
        return text[start.start() :] if start else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _written(path: Path, start: int) -> str:
    """The text of a log from a position on; "" where it is gone."""
    try:
        return path.read_bytes()[start:].decode(errors="replace")
    except FileNotFoundError:
        return ""
