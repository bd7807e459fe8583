"""Counters of an inbox's workers, like those that built-in workers keep of themselves."""

import threading
import time
from collections.abc import Iterable
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

    def advance(self, now: float) -> None:
        """Count it as busy for as long as it held a lease, and as waiting otherwise."""
        busy = min(max(max(self.deadlines.values(), default=self.seen) - self.seen, 0.0), now - self.seen)
        self.counters = replace(
            self.counters,
            busy_seconds=self.counters.busy_seconds + busy,
            waiting_seconds=self.counters.waiting_seconds + now - self.seen - busy,
        )
        self.deadlines = {dispatch: deadline for dispatch, deadline in self.deadlines.items() if deadline > now}
        self.seen = now


class Workers:
    """Counters by worker, kept in the ledger; they go on where an earlier inbox of the run stopped."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._lock = threading.Lock()

    def leased(self, leases: LocalLeases, name: str, dispatches: Iterable[int], seconds: float, logprobs: bool) -> None:
        """Count a worker's question for prompts, to which it was given these."""
        with self._lock:
            worker = self._advanced(leases, name)
            deadlines = dict.fromkeys(dispatches, worker.seen + seconds)
            worker.deadlines |= deadlines
            asked = worker.counters.requests_with_logprobs + len(deadlines) * logprobs
            worker.counters = replace(worker.counters, requests_with_logprobs=asked)
            leases.report_worker(name, worker.counters)

    def written(self, leases: LocalLeases, name: str, dispatch: int, groups: int, tokens: int) -> None:
        """Count a group that a worker has sent; `groups` is 1 where it was accepted, else 0."""
        with self._lock:
            worker = self._advanced(leases, name)
            worker.deadlines.pop(dispatch, None)
            counters = worker.counters
            worker.counters = replace(
                counters, groups=counters.groups + groups, tokens=counters.tokens + groups * tokens
            )
            leases.report_worker(name, worker.counters)

    def _advanced(self, leases: LocalLeases, name: str) -> _Worker:
        now = time.monotonic()
        if name not in self._workers:
            self._workers[name] = _Worker(counters=leases.counters(name), seen=now)
        worker = self._workers[name]
        worker.advance(now)
        return worker
