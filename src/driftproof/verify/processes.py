"""Reward functions in killable processes, with a time limit for each answer.

Guarantees: `ask` gives every item an outcome, in order, whatever the functions do. An item whose functions hang, die,
raise or return no finite number has none but the reason; the other items are not affected, and a lost process is
replaced. A process that is ended from outside costs nothing: what it worked on is asked once more. Starting a process
does not count against the time limit; after the first loss there is always one more, so that nobody waits for it. The
processes end with the pool's process, however that ends. Nothing is pickled: items and rewards travel as JSON, and a
message that is too long or not as agreed ends its process.
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
from driftproof.verify.protocol import Item

START_SECONDS = 60.0
"""How long a process may take to start and to import the functions."""
_MOST_QUEUED = 4
"""Items handed to one process at a time: a process does not wait for its next item, and few wait behind a slow one."""
MESSAGE_BYTES = 1 << 20
"""Longest message of a process; what ours write is far shorter."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An item's reward by each function (None: none on purpose), or the problem for which there are none."""

    rewards: tuple[float | None, ...] = ()
    problem: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class _Task:
    """Items that are asked about in one call of the functions: one, or those of a group."""

    positions: tuple[int, ...]
    spent: float = 0.0
    """Seconds that a process which died has worked on it."""
    died: bool = False
    """Whether a process died over it."""


class _Work:
    """The items of one call of `ask`."""

    def __init__(self, items: Sequence[Item], tasks: Sequence[_Task]) -> None:
        self.items = items
        self.waiting = deque(tasks)
        self.outcomes: dict[int, Outcome] = {}


@dataclass(slots=True, kw_only=True, eq=False)
class _Child:
    """One process and what is known about it. Messages to it never block: it may be hanging and not reading."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    lifeline: int
    """Our end of a pipe that carries nothing; the process ends when it closes."""
    since: float = field(default_factory=time.monotonic)
    """When it was started or began the task it works on, monotonic seconds."""
    ready: bool = False
    """Whether it has imported the functions."""
    queue: deque[_Task] = field(default_factory=deque)
    """Tasks it holds; it works on the first."""
    unsent: bytearray = field(default_factory=bytearray)
    received: bytes = b""

    @classmethod
    def start(cls, names: Sequence[str], memory_bytes: int) -> Self:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        # Each has a pipe of its own, for a pipe's end signals one process only.
        their_lifeline, lifeline = os.pipe()
        # What this process can import, the child can; -P keeps the working directory from shadowing any of it.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        arguments = [str(their_lifeline), str(memory_bytes), *names]
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "driftproof.verify.child", *arguments],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                pass_fds=(their_lifeline,),
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": path},
                # A session of its own, so that whatever a function has started is killed with it.
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(their_lifeline)
        return cls(process=process, channel=ours, lifeline=lifeline)

    def deadline(self, timeout_seconds: float) -> float:
        """When it must have reported again, monotonic seconds; infinite while idle."""
        if not self.ready:
            return self.since + START_SECONDS
        return self.since + timeout_seconds - self.queue[0].spent if self.queue else math.inf

    def give(self, task: _Task, fields: Sequence[dict[str, Any]]) -> None:
        if not self.queue:
            self.since = time.monotonic()
        self.queue.append(task)
        self.unsent += json.dumps(fields).encode() + b"\n"

    def send(self) -> None:
        """Send what the channel takes now. A dead process shows when it is read from, not here."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.unsent:
                del self.unsent[: self.channel.send(self.unsent)]

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """The messages that have arrived, and whether the process is there and speaks as agreed."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self.channel.recv(1 << 16)
        *lines, self.received = (self.received + data).split(b"\n")
        messages: list[dict[str, Any]] = []
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                return messages, False
            if not isinstance(message, dict):
                return messages, False
            messages.append(message)
        return messages, bool(data) and len(self.received) <= MESSAGE_BYTES

    def kill(self) -> str:
        """Kill the process and all it has started; returns how it ended ("exited with code 3")."""
        # Before wait: until then its id cannot be given to another process.
        with contextlib.suppress(ProcessLookupError, PermissionError):  # already dead, as macOS says it
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.channel.close()
        os.close(self.lifeline)
        return f"exited with code {code}" if code >= 0 else f"was ended by signal {-code} ({signal.strsignal(-code)})"


class Processes:
    """`count` processes that each run the functions `names`, "package.module:function", one item at a time.

    An item may take `timeout_seconds` of wall time. `ask` must not be called by two threads at once.
    VerifierError for an argument out of range, or a function that cannot be imported.
    """

    def __init__(self, names: Sequence[str], *, count: int, timeout_seconds: float, memory_bytes: int) -> None:
        if count < 1:
            raise VerifierError(f"processes is {count}; a verifier pool needs at least 1")
        if not (math.isfinite(timeout_seconds) and timeout_seconds > 0):
            raise VerifierError(f"timeout_seconds is {timeout_seconds}; it must be a positive number of seconds")
        self._names = tuple(names)
        self._count = count
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._needs: tuple[str, ...] = ()
        self.compares = False
        """Whether a function can be given the responses of a group at once."""
        self.failures = {"timeouts": 0, "crashes": 0, "invalid_rewards": 0}
        """Counted since the start; a crash is a function that raised, or a process that died."""
        self._selector = selectors.DefaultSelector()
        self._children: list[_Child] = []
        with self._closed_on_error():
            for _ in range(count):
                self._start_child()
            while not all(child.ready for child in self._children):
                self._advance(_Work((), ()))

    @property
    def name(self) -> str:
        """The functions in words."""
        return " and ".join(map(repr, self._names))

    def ask(self, items: Sequence[Item], *, together: bool = False) -> list[Outcome]:
        """One outcome per item, in their order; raises VerifierError if the pool is closed or cannot start anew.

        With `together` functions that compare are given the responses of a group at once; where that fails, one by one.
        """
        if not self._children:
            raise VerifierError(f"verifier {self.name} is closed; build a new one")
        work = _Work(items, _tasks(items, together and self.compares))
        with self._closed_on_error():
            # A process that died while idle is replaced here, before an item can be blamed for it.
            self._advance(work, wait=False)
            while len(work.outcomes) < len(items):
                self._hand_out(work)
                self._advance(work)
        return [work.outcomes[position] for position in range(len(items))]

    def close(self) -> None:
        """Kill the processes; may be called more than once."""
        for child in self._children:
            child.kill()
        self._children = []
        self._selector.close()

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """Items under way when an error (or Ctrl-C) ends a call must not be answered into the next one."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _start_child(self) -> None:
        child = _Child.start(self._names, self._memory_bytes)
        self._children.append(child)
        self._selector.register(child.channel, selectors.EVENT_READ, child)

    def _hand_out(self, work: _Work) -> None:
        """Give what waits to the processes that are ready, to `count` of them at once: another one is a spare."""
        ready = sorted((child for child in self._children if child.ready), key=lambda child: not child.queue)
        ready = ready[: self._count]
        while ready and work.waiting:
            child = min(ready, key=lambda child: len(child.queue))
            if len(child.queue) == _MOST_QUEUED:
                break
            task = work.waiting.popleft()
            child.give(task, [work.items[position].fields(self._needs) for position in task.positions])
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
                alive = all(self._settle(child, message, work) for message in messages) and alive
                if not alive:
                    self._replace(child, work)
        for child in list(self._children):
            # Asked after the messages were read: an answer that has arrived is in time.
            if child.deadline(self._timeout_seconds) <= time.monotonic():
                self._replace(child, work, timed_out=True)

    def _settle(self, child: _Child, message: dict[str, Any], work: _Work) -> bool:
        """Take a message in; whether it was as agreed."""
        child.since = time.monotonic()
        if not child.ready:
            if "error" in message:
                raise VerifierError(
                    f"verifier {self.name} cannot be imported: {message['error']} (valid: 'package.module:function')"
                )
            child.ready = "needs" in message and "compares" in message
            if child.ready:
                self._needs, self.compares = tuple(message["needs"]), bool(message["compares"])
            return child.ready
        if not child.queue:
            return False
        task = child.queue[0]
        if "rewards" in message:
            rewards = _read_rewards(message["rewards"], len(task.positions), len(self._names))
            if rewards is None:
                return False
            work.outcomes |= zip(task.positions, (Outcome(rewards=of_item) for of_item in rewards), strict=True)
        elif message.get("cause") in self.failures:
            self._fail(work, task, message["cause"], str(message.get("problem")))
        else:
            return False
        child.queue.popleft()
        return True

    def _replace(self, child: _Child, work: _Work, timed_out: bool = False) -> None:
        self._selector.unregister(child.channel)
        self._children.remove(child)
        worked = time.monotonic() - child.since
        ending = child.kill()
        if not child.ready:
            ending = f"did not finish within {START_SECONDS:g} s" if timed_out else ending
            raise VerifierError(f"verifier {self.name} cannot be imported: its process {ending}")
        task = child.queue.popleft() if child.queue else None
        work.waiting.extendleft(reversed(child.queue))
        if not timed_out and (task is None or not task.died):
            # It may have been ended from outside.
            self.failures["crashes"] += 1
            if task is not None:
                task.died, task.spent = True, worked
                work.waiting.appendleft(task)
        elif task is not None:
            cause = "timeouts" if timed_out else "crashes"
            crashed = f"verifier crashed: its process {ending}"
            self._fail(work, task, cause, f"verifier exceeded {self._timeout_seconds:g} s" if timed_out else crashed)
        while len(self._children) < self._count + 1:
            self._start_child()

    def _fail(self, work: _Work, task: _Task, cause: str, problem: str) -> None:
        self.failures[cause] += 1
        if len(task.positions) > 1:
            # One of them has broken it.
            work.waiting.extendleft(_Task(positions=(position,)) for position in reversed(task.positions))
        else:
            work.outcomes[task.positions[0]] = Outcome(problem=problem)


def _tasks(items: Sequence[Item], together: bool) -> list[_Task]:
    """A task for each item, or for each run of items of one group."""
    tasks: list[_Task] = []
    for position, item in enumerate(items):
        group = items[position - 1].group if position else None
        if together and item.group is not None and item.group == group:
            tasks[-1].positions += (position,)
        else:
            tasks.append(_Task(positions=(position,)))
    return tasks


def _read_rewards(found: Any, items: int, functions: int) -> list[tuple[float | None, ...]] | None:
    """The rewards of each item as they were sent; None where that is not what was agreed."""
    if not (isinstance(found, list) and len(found) == items):
        return None
    for of_item in found:
        if not (isinstance(of_item, list) and len(of_item) == functions):
            return None
        if not all(reward is None or (type(reward) is float and math.isfinite(reward)) for reward in of_item):
            return None
    return [tuple(of_item) for of_item in found]
