"""Counters of an inbox's workers, like those that built-in workers keep of themselves."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from driftproof.ledger.leases import LocalLeases
from driftproof.ledger.records import Counters


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
        self._workers: dict[str, _Worker] = {}
        self._lock = threading.Lock()

    def leased(self, leases: LocalLeases, name: str, dispatches: Iterable[int], seconds: float, logprobs: bool) -> None:
        """Count a worker's question for prompts, to which it was given these."""
        with self._reported(leases, name) as worker:
            deadlines = dict.fromkeys(dispatches, worker.seen + seconds)
            worker.deadlines |= deadlines
            worker.add(requests_with_logprobs=len(deadlines) * logprobs)

    def written(self, leases: LocalLeases, name: str, dispatch: int, groups: int, tokens: int) -> None:
        """Count a group that a worker has sent; `groups` is 1 where it was accepted, else 0."""
        with self._reported(leases, name) as worker:
            worker.deadlines.pop(dispatch, None)
            worker.add(groups=groups, tokens=groups * tokens)

    @contextmanager
    def _reported(self, leases: LocalLeases, name: str) -> Iterator[_Worker]:
        """A worker that was heard of now; its counters go to the ledger at the end."""
        with self._lock:
            now = time.monotonic()
            if name not in self._workers:
                self._workers[name] = _Worker(counters=leases.counters(name), seen=now)
            worker = self._workers[name]
            worker.advance(now)
            yield worker
            leases.report_worker(name, worker.counters)
