"""A verifier in killable processes, with a time limit for each answer.

Guarantees: `score` gives every item a verdict, in order, whatever the verifier does. An item whose verifier hangs,
dies, raises or returns no finite number gets no reward and the reason; the other items are not affected, and a lost
process is replaced. Starting a process does not count against the time limit. The processes end with the pool's
process, however that ends. Nothing is pickled: items and verdicts travel as JSON.
"""

import contextlib
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from driftproof.errors import VerifierError
from driftproof.types import Verdict
from driftproof.verify.protocol import Item

_START_SECONDS = 60.0
"""How long a process may take to start and to import the verifier."""
_MOST_QUEUED = 4
"""Items handed to one process at a time: a process does not wait for its next item, and few wait behind a slow one."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class _Work:
    """The items of one call of `score`."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.waiting = deque(range(len(items)))
        self.verdicts: dict[int, Verdict] = {}


@dataclass(slots=True, kw_only=True, eq=False)
class _Child:
    """One process and what is known about it. Messages to it never block: it may be hanging and not reading."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    lifeline: int
    """Our end of a pipe that carries nothing; the process ends when it closes."""
    since: float = field(default_factory=time.monotonic)
    """When it was started or began the item it works on, monotonic seconds."""
    ready: bool = False
    """Whether it has imported the verifier."""
    queue: deque[int] = field(default_factory=deque)
    """Positions of the items it holds; it works on the first."""
    unsent: bytearray = field(default_factory=bytearray)
    received: bytes = b""

    @classmethod
    def start(cls, name: str) -> Self:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        # Each has a pipe of its own, for a pipe's end signals one process only.
        their_lifeline, lifeline = os.pipe()
        # What this process can import, the child can; -P keeps the working directory from shadowing any of it.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "driftproof.verify.child", name, str(their_lifeline)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                pass_fds=(their_lifeline,),
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": path},
                # A session of its own, so that whatever the verifier has started is killed with it.
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(their_lifeline)
        return cls(process=process, channel=ours, lifeline=lifeline)

    def deadline(self, timeout_seconds: float) -> float:
        """When it must have reported again, monotonic seconds; infinite while idle."""
        if not self.ready:
            return self.since + _START_SECONDS
        return self.since + timeout_seconds if self.queue else math.inf

    def give(self, position: int, item: Item) -> None:
        if not self.queue:
            self.since = time.monotonic()
        self.queue.append(position)
        self.unsent += json.dumps([item.response, item.answer, item.prompt]).encode() + b"\n"

    def send(self) -> None:
        """Send what the channel takes now. A dead process shows when it is read from, not here."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.unsent:
                del self.unsent[: self.channel.send(self.unsent)]

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """The messages that have arrived, and whether the process still holds its end."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self.channel.recv(1 << 16)
        *lines, self.received = (self.received + data).split(b"\n")
        return [json.loads(line) for line in lines], bool(data)

    def kill(self) -> str:
        """Kill the process and all it has started; returns how it ended ("exited with code 3")."""
        # Before wait: until then its id cannot be given to another process.
        with contextlib.suppress(ProcessLookupError, PermissionError):  # already dead, as macOS says it
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.channel.close()
        os.close(self.lifeline)
        return f"exited with code {code}" if code >= 0 else f"was ended by signal {-code} ({signal.strsignal(-code)})"


class VerifierPool:
    """`processes` processes that each run the function `verify_name`, "package.module:function", one item at a time.

    An item may take `timeout_seconds` of wall time. `score` must not be called by two threads at once.
    VerifierError for an argument out of range, or a verifier that cannot be imported.
    """

    def __init__(self, verify_name: str, *, processes: int, timeout_seconds: float) -> None:
        if processes < 1:
            raise VerifierError(f"processes is {processes}; a verifier pool needs at least 1")
        if not (math.isfinite(timeout_seconds) and timeout_seconds > 0):
            raise VerifierError(f"timeout_seconds is {timeout_seconds}; it must be a positive number of seconds")
        self._name = verify_name
        self._timeout_seconds = timeout_seconds
        self.failures = {"timeouts": 0, "crashes": 0, "invalid_rewards": 0}
        """Counted since the start; a crash is a verifier that died or raised."""
        self._selector = selectors.DefaultSelector()
        self._children: list[_Child] = []
        with self._closed_on_error():
            for _ in range(processes):
                self._start_child()
            while not all(child.ready for child in self._children):
                self._advance(_Work(items=()))

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in their order; raises VerifierError if the pool is closed or cannot start anew."""
        if not self._children:
            raise VerifierError(f"verifier {self._name!r} is closed; build a new one")
        work = _Work(items=items)
        with self._closed_on_error():
            # A process that died while idle is replaced here, before an item can be blamed for it.
            self._advance(work, wait=False)
            while len(work.verdicts) < len(items):
                self._hand_out(work)
                self._advance(work)
        return [work.verdicts[position] for position in range(len(items))]

    def close(self) -> None:
        """Kill the processes; may be called more than once."""
        for child in self._children:
            child.kill()
        self._children = []
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """Items under way when an error (or Ctrl-C) ends a call must not be answered into the next one."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _start_child(self) -> None:
        child = _Child.start(self._name)
        self._children.append(child)
        self._selector.register(child.channel, selectors.EVENT_READ, child)

    def _hand_out(self, work: _Work) -> None:
        ready = [child for child in self._children if child.ready]
        while ready and work.waiting:
            child = min(ready, key=lambda child: len(child.queue))
            if len(child.queue) == _MOST_QUEUED:
                break
            position = work.waiting.popleft()
            child.give(position, work.items[position])
        for child in ready:
            self._send(child)

    def _send(self, child: _Child) -> None:
        child.send()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.unsent else 0)
        self._selector.modify(child.channel, events, child)

    def _advance(self, work: _Work, wait: bool = True) -> None:
        """Wait for a message or the next deadline; settle what was answered, what ran too long and what died."""
        deadline = min(child.deadline(self._timeout_seconds) for child in self._children)
        seconds = 0.0 if not wait else None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        for key, events in self._selector.select(seconds):
            child: _Child = key.data
            if events & selectors.EVENT_WRITE:
                self._send(child)
            if events & selectors.EVENT_READ:
                messages, alive = child.receive()
                for message in messages:
                    self._settle(child, message, work)
                if not alive:
                    self._replace(child, work)
        for child in list(self._children):
            # Asked after the messages were read: an answer that has arrived is in time.
            if child.deadline(self._timeout_seconds) <= time.monotonic():
                self._replace(child, work, timed_out=True)

    def _settle(self, child: _Child, message: dict[str, Any], work: _Work) -> None:
        child.since = time.monotonic()
        if not child.ready:
            if "error" in message:
                raise VerifierError(
                    f"verifier {self._name!r} cannot be imported: {message['error']} "
                    "(valid: 'package.module:function', a function of (text, answer) that returns a number)"
                )
            child.ready = True
            return
        position = child.queue.popleft()
        if "reward" in message:
            work.verdicts[position] = Verdict(reward=message["reward"])
        else:
            self._fail(work, position, message["cause"], message["problem"])

    def _replace(self, child: _Child, work: _Work, timed_out: bool = False) -> None:
        self._selector.unregister(child.channel)
        self._children.remove(child)
        ending = child.kill()
        if not child.ready:
            ending = f"did not finish within {_START_SECONDS:g} s" if timed_out else ending
            raise VerifierError(f"verifier {self._name!r} cannot be imported: its process {ending}")
        if timed_out:
            self._fail(work, child.queue.popleft(), "timeouts", f"verifier exceeded {self._timeout_seconds:g} s")
        elif child.queue:
            self._fail(work, child.queue.popleft(), "crashes", f"verifier crashed: its process {ending}")
        else:
            self.failures["crashes"] += 1
        work.waiting.extendleft(reversed(child.queue))
        self._start_child()

    def _fail(self, work: _Work, position: int, cause: str, problem: str) -> None:
        self.failures[cause] += 1
        work.verdicts[position] = Verdict(reward=None, problem=problem)
