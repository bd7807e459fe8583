"""Several servers: which one gets the next request, which are ejected and readmitted, and which have which weights.

Guarantees: a server that dies is ejected, asked again with back-off and readmitted; with an updater none gets work
before it has the newest weights. All of it runs in one event loop, and so needs no locks for shared state.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from driftproof.engines.http import CallError, Unreachable
from driftproof.engines.openai.probe import ServerFacts
from driftproof.errors import EngineError


class Updater(Protocol):
    """Brings the weights of a snapshot to a server, or to several at once."""

    @property
    def counters(self) -> Mapping[str, float]:
        """Counts since the start that an operator should see."""

    async def update(self, server_url: str, snapshot: Path) -> None:
        """Return when the server answers with the weights of `snapshot`; EngineError or OSError where it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Limits of what is asked of a server, and of what is waited for."""

    timeout_seconds: float = 600.0
    """Time limit of one reply."""
    attempts: int = 5
    """Failures after which a request is given up."""
    backoff_seconds: float = 0.5
    """Upper end of the first pause; it doubles with every failure, and a pause is drawn from all below it."""
    longest_pause_seconds: float = 30.0
    """Upper end of every pause."""
    eject_after: int = 3
    """Failures in a row that eject a server; a refused connection does so at once."""
    outage_seconds: float = 300.0
    """Time that requests wait when no server is left; also the longest Retry-After that is honored."""

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures: full jitter."""
        return random.uniform(0, min(self.longest_pause_seconds, self.backoff_seconds * 2.0 ** min(failures - 1, 60)))


@dataclass(slots=True, kw_only=True, eq=False)
class Server:
    """A server and its state."""

    url: str
    facts: ServerFacts | None = None
    """Set once it was live."""
    live: bool = False
    """Whether it gets requests."""
    busy: int = 0
    """Responses under way."""
    failures: int = 0
    """Failures in a row."""
    not_before: float = 0.0
    """Monotonic seconds before which it wants no request."""
    weights: Path | None = None
    """The snapshot it has; None is what it was started with."""
    updating: asyncio.Lock = field(default_factory=asyncio.Lock)
    last_error: str = ""


class ServerPool:
    """The servers of an engine, each with `slots` responses under way at most; `open` admits them.

    `examine` finds out what a server can do (EngineError: too little; Unreachable: not now); `spawn` starts a task.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        slots: int,
        examine: Callable[[str], Awaitable[ServerFacts]],
        policy: RetryPolicy,
        updater: Updater | None,
        counters: Counter[str],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.policy = policy
        self.updater = updater
        self.counters = counters
        self._servers = [Server(url=url) for url in urls]
        self._per_server = slots
        self._examine = examine
        self._spawn = spawn
        self._snapshot: Path | None = None
        self._unavailable_since = time.monotonic()
        self._queue = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def facts(self) -> tuple[ServerFacts, ...]:
        """Facts of the servers that have answered so far."""
        return tuple(server.facts for server in self._servers if server.facts is not None)

    @property
    def slots(self) -> int:
        """Responses that the live servers may write at once."""
        return len(self._live) * self._per_server

    @property
    def _live(self) -> list[Server]:
        return [server for server in self._servers if server.live]

    async def open(self) -> None:
        """Examine all servers; EngineError where one cannot be used, or none answers."""
        outcomes = await asyncio.gather(*map(self._admit, self._servers), return_exceptions=True)
        for server, error in zip(self._servers, outcomes, strict=True):
            if isinstance(error, Unreachable):
                server.last_error = str(error)
            elif error is not None:
                raise error
        if not self._live:
            raise EngineError(f"no server answers: {self._errors()}; start it, or correct --engine.url")
        for server in self._servers:
            if not server.live:
                self.counters["errors.refused"] += 1
                self._eject(server, server.last_error)

    async def reserve(self, samples: int) -> Server:
        """The least loaded server that has room, first come, first served; EngineError after too long without one."""
        async with self._queue:
            while True:
                now, live = time.monotonic(), self._live
                free = [s for s in live if s.not_before <= now and (not s.busy or s.busy + samples <= self._per_server)]
                if free:
                    least = min(server.busy for server in free)
                    server = random.choice([server for server in free if server.busy == least])
                    server.busy += samples
                    return server
                outage_ends = self._unavailable_since + self.policy.outage_seconds
                if not live and now >= outage_ends:
                    self.counters["errors.no_server"] += 1
                    raise EngineError(f"no server for {now - self._unavailable_since:.0f} s: {self._errors()}")
                resting = min((server.not_before for server in live if server.not_before > now), default=None)
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(resting if live else outage_ends):
                        await self._changed.wait()

    def release(self, server: Server, samples: int) -> None:
        """Give back what `reserve` gave."""
        server.busy -= samples
        self._changed.set()

    def record_failure(self, server: Server, failure: CallError) -> None:
        """Count a failure, and draw the conclusions for its server."""
        self.counters[f"errors.{failure.kind}"] += 1
        if failure.retry_after is not None:
            pause = min(failure.retry_after, self.policy.outage_seconds)
            server.not_before = max(server.not_before, time.monotonic() + pause)
            return
        # Too many requests, or one it does not understand, say nothing about its health.
        server.failures += not (failure.final or failure.kind == "status_429")
        lost = failure.kind in ("refused", "restarted")
        if server.live and (lost or server.failures >= self.policy.eject_after):
            self._eject(server, str(failure))

    async def load(self, snapshot: Path) -> None:
        """Bring the weights of a snapshot to every live server; one that does not take them is ejected."""
        self._snapshot = snapshot
        live = self._live
        outcomes = await asyncio.gather(*map(self._update, live), return_exceptions=True)
        for server, error in zip(live, outcomes, strict=True):
            if isinstance(error, (EngineError, OSError)):
                self.counters["errors.update"] += 1
                if server.live:
                    self._eject(server, f"no new weights: {error}")
            elif error is not None:
                raise error
        if not snapshot.is_dir():
            raise FileNotFoundError(f"snapshot {snapshot} was removed while the servers read it")

    def _eject(self, server: Server, why: str) -> None:
        server.live = False
        server.last_error = why
        self.counters["ejected"] += 1
        if not self._live:
            self._unavailable_since = time.monotonic()
        self._changed.set()
        self._spawn(self._readmit(server))

    async def _readmit(self, server: Server) -> None:
        """Ask a server that was ejected until it can be used again."""
        failures = 1
        while not server.live:
            await asyncio.sleep(self.policy.pause(failures))
            try:
                await self._admit(server)
            except (EngineError, OSError) as error:
                server.last_error = str(error)
                self.counters["errors.readmit"] += 1
                failures += 1
        self.counters["readmitted"] += 1

    async def _admit(self, server: Server) -> None:
        """Let a server have work, if it can be used: with the newest weights."""
        server.facts = await self._examine(server.url)
        # Whoever was away may have been started again.
        await self._update(server, anew=True)
        server.failures = 0
        server.live = True
        self._changed.set()

    async def _update(self, server: Server, *, anew: bool = False) -> None:
        """Bring the newest weights, and what became the newest meanwhile; `anew`: even if it had them."""
        async with server.updating:
            if anew:
                server.weights = None
            while self.updater is not None and self._snapshot is not None and server.weights != self._snapshot:
                snapshot = self._snapshot
                await self.updater.update(server.url, snapshot)
                server.weights = snapshot
                self.counters["updates"] += 1

    def _errors(self) -> str:
        return "; ".join(f"{server.url}: {server.last_error}" for server in self._servers if not server.live)
