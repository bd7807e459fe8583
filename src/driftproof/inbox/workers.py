"""Whoever sends to an inbox: counters and events, as many as there is room for.

Guarantees: however many names are made up and however much is refused, the ledger gets at most `MAX_WORKERS` rows more
one, and one event of a kind in `EVENT_SECONDS`.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from driftproof.ledger.leases import LocalLeases
from driftproof.ledger.records import Counters

MAX_WORKERS = 256
"""Workers of an inbox that are told apart; all others are one."""
EVENT_SECONDS = 10.0
"""Time between two events of one kind that senders cause."""
PREFIX = "inbox:"
"""Before the names of an inbox's workers in the ledger, so that none is that of a built-in one."""
OTHERS = f"{PREFIX}+others"
"""Name in the ledger of all workers beyond `MAX_WORKERS`; none can call itself so."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    counters: Counters
    seen: float
    """Time of its last request, monotonic seconds."""
    deadlines: dict[int, float] = field(default_factory=dict)
    """Deadlines of the leases that it holds, by dispatch, monotonic seconds."""

    def add(self, **amounts: float) -> None:
        totals = {name: getattr(self.counters, name) + amount for name, amount in amounts.items()}
        self.counters = replace(self.counters, **totals)

    def advance(self, now: float) -> None:
        """Count it as busy for as long as it held a lease, and as waiting otherwise."""
        busy = min(max(max(self.deadlines.values(), default=self.seen) - self.seen, 0.0), now - self.seen)
        self.add(busy_seconds=busy, waiting_seconds=now - self.seen - busy)
        self.deadlines = {dispatch: deadline for dispatch, deadline in self.deadlines.items() if deadline > now}
        self.seen = now


class Workers:
    """Counters by worker, kept in the ledger; they go on where an earlier inbox of the run stopped."""

    def __init__(self) -> None:
        self._names: set[str] | None = None
        self._workers: dict[str, _Worker] = {}
        self._lock = threading.Lock()

    def admit(self, ledger: LocalLeases, worker: str) -> str:
        """The ledger's name of a worker, its own as long as there is room."""
        with self._lock:
            names = self._known(ledger)
            name = f"{PREFIX}{worker}"
            if name not in names and len(names) >= MAX_WORKERS:
                return OTHERS
            names.add(name)
            return name

    def find(self, ledger: LocalLeases, worker: str) -> str:
        """The ledger's name of a worker that may have been admitted."""
        with self._lock:
            name = f"{PREFIX}{worker}"
            return name if name in self._known(ledger) else OTHERS

    @contextmanager
    def reported(self, ledger: LocalLeases, name: str) -> Iterator[_Worker]:
        """A worker, by the ledger's name, that was heard of now; its counters go to the ledger at the end."""
        with self._lock:
            now = time.monotonic()
            if name not in self._workers:
                self._workers[name] = _Worker(counters=ledger.counters(name), seen=now)
            worker = self._workers[name]
            worker.advance(now)
            yield worker
            ledger.report_worker(name, worker.counters)

    def _known(self, ledger: LocalLeases) -> set[str]:
        if self._names is None:
            self._names = {name for name in ledger.workers() if name.startswith(PREFIX) and name != OTHERS}
        return self._names


class SenderEvents:
    """Events that senders cause: the first of a kind at once, then one in a while that counts those between."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, int]] = {}
        """When the last event was recorded, monotonic seconds, and how many were not since."""
        self._lock = threading.Lock()

    def record(self, ledger: LocalLeases, kind: str, message: str) -> None:
        with self._lock:
            now = time.monotonic()
            last, kept = self._kinds.get(kind, (now - EVENT_SECONDS, 0))
            if now - last < EVENT_SECONDS:
                self._kinds[kind] = last, kept + 1
                return
            self._kinds[kind] = now, 0
        ledger.record_event(kind, f"{message}; {kept:,} more since the event before" if kept else message)
