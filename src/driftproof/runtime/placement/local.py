"""Processes on this machine, forked from a server that has imported torch and transformers already.

Guarantees: whatever happens to this process, none of its processes is left behind; how each ended is known, in its own
words where it had any.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from driftproof.run import RunDirectory
from driftproof.runtime.activity import Activity
from driftproof.runtime.placement.child import STACKS, main
from driftproof.runtime.placement.protocol import Resources, Role

ANSWER_SECONDS = 3.0
"""How long a process may take to write its stacks."""
LAST_LINES = 12
"""Lines of its log that stand for the last words of a process that had none."""
PRELOADED = ("driftproof.runtime.processes", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")


def warm_up() -> None:
    """Let the server that the processes are forked from import what they need, while this process does other things."""
    # A signal to the whole process group, as a closing terminal sends it, must not end that server: how its children
    # end could not be known. What is ignored stays so in a new program.
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        multiprocessing.set_forkserver_preload(list(PRELOADED))
        forkserver.ensure_running()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
    _sentence: str = ""

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
        with suppress(EOFError):
            if self.last_words.poll():
                self._sentence = f"ended: {self.last_words.recv_bytes().decode(errors='replace')}"
        return self._sentence or (f"was killed by signal {-code}" if code < 0 else f"ended with code {code}")

    def last_output(self) -> str:
        lines = [] if self._sentence else _written(self.log, self.log_begins).splitlines()
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
