"""What the workers of an inbox did, counted as built-in workers count themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from driftproof.ledger.store import Ledger


@dataclass(slots=True, kw_only=True)
class _Worker:
    totals: dict[str, Any]
    seen: float
    """Of its last request, monotonic seconds."""
    deadlines: dict[int, float] = field(default_factory=dict)
    """Of the leases that it holds, by dispatch."""

    def advance(self, now: float) -> None:
        """It was busy as long as it held a lease, and waited otherwise."""
        busy = min(max(max(self.deadlines.values(), default=self.seen) - self.seen, 0.0), now - self.seen)
        self.totals["busy_seconds"] += busy
        self.totals["waiting_seconds"] += now - self.seen - busy
        self.deadlines = {dispatch: deadline for dispatch, deadline in self.deadlines.items() if deadline > now}
        self.seen = now


class Workers:
    """Counters by worker, kept in the ledger; they go on where an earlier inbox of the run stopped."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._lock = threading.Lock()

    def leased(self, ledger: Ledger, name: str, dispatches: Iterable[int], seconds: float, logprobs: bool) -> None:
        """A worker has asked for prompts and was given these."""
        with self._lock:
            worker = self._advanced(ledger, name)
            deadlines = dict.fromkeys(dispatches, worker.seen + seconds)
            worker.deadlines |= deadlines
            worker.totals["requests_with_logprobs"] += len(deadlines) * logprobs
            ledger.report_worker(name, worker.totals)

    def written(self, ledger: Ledger, name: str, dispatch: int, groups: int, tokens: int) -> None:
        """A worker has sent a group; `groups` is 1 where it was accepted, else 0."""
        with self._lock:
            worker = self._advanced(ledger, name)
            worker.deadlines.pop(dispatch, None)
            worker.totals["groups"] += groups
            worker.totals["tokens"] += groups * tokens
            ledger.report_worker(name, worker.totals)

    def _advanced(self, ledger: Ledger, name: str) -> _Worker:
        now = time.monotonic()
        if name not in self._workers:
            totals = {
                "busy_seconds": 0.0,
                "waiting_seconds": 0.0,
                "tokens": 0,
                "groups": 0,
                "requests_with_logprobs": 0,
            } | ledger.workers().get(name, {})
            self._workers[name] = _Worker(totals=totals, seen=now)
        worker = self._workers[name]
        worker.advance(now)
        return worker
