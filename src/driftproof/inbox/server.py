"""The connections of an inbox: how many there may be, and how long each may take.

Guarantees: whoever connects and sends nothing, half a header or a body without end, or does not read the answer, is
disconnected in time, and makes room at once where others want in; there are never more connections than files may be
open; however many there are, the log gets a line of a kind in `CALM_SECONDS`.
"""

import asyncio
import logging
import resource
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from h11 import SEND_BODY
from uvicorn.protocols.http.h11_impl import H11Protocol

from driftproof.errors import ConfigError

CONNECTIONS = 256
"""Connections at once; fewer where fewer files may be open."""
HEADER_SECONDS = 10.0
"""Time for a request's header, and between two requests of one connection."""
BODY_SECONDS = 120.0
"""Time for a request's body."""
TAKE_SECONDS = 60.0
"""Time in which a reader takes something of an answer."""
THREADS = 8
"""Requests that are at work on the ledger at once."""
STOP_SECONDS = 10
"""Time that requests under way have to end when the inbox is stopped."""
CALM_SECONDS = 60.0
"""Time between two lines of one kind in the log."""
LEAST_CONNECTIONS = 4
RESERVED_FILES = 48
"""Files beside connections: of each thread a ledger with its log, of verifiers their pipes."""
_PAUSE_SECONDS = 0.1
_WATCH_SECONDS = 0.5

_log = logging.getLogger("uvicorn.error")
_LOGS = (_log, logging.getLogger("asyncio"))


class Connection(H11Protocol):
    """A connection that knows what it has been waiting for, and since when."""

    waiting_for: tuple[str, object] = ("header", id(None))
    since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = time.monotonic()

    def waits(self) -> tuple[str, object]:
        """The client's next duty and a mark of how far it is with it; `nothing` while the inbox is at work."""
        unsent = self.transport.get_write_buffer_size()
        done = self.cycle is None or self.cycle.response_complete
        if unsent:
            return "take", unsent
        if self.conn.their_state is SEND_BODY and not done:
            return "body", id(self.cycle)
        # A body that comes after its answer is of no use to anybody.
        return ("header", id(self.cycle)) if done else ("nothing", None)


LIMITS = {"header": HEADER_SECONDS, "body": BODY_SECONDS, "take": TAKE_SECONDS}
MISSING = {"header": "no request", "body": "not the whole body", "take": "nothing of an answer was taken"}


class Server(uvicorn.Server):
    """Serves an app on a socket that listens; takes connections by itself, as many as there is room for."""

    def __init__(self, app: FastAPI) -> None:
        """ConfigError where too few files may be open."""
        config = uvicorn.Config(
            app, http=Connection, ws="none", lifespan="off", log_level="warning", access_log=False, server_header=False
        )
        config.timeout_graceful_shutdown = STOP_SECONDS
        super().__init__(config)
        self.most = most_connections()
        self._calm = Calm()
        self._own: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for log in _LOGS:
            log.addFilter(self._calm)
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        # asyncio would take whatever comes, until no file can be opened any more, and write of each failure.
        await super().startup(sockets=[])
        work = [*map(self._accept, sockets or []), self._watch()]
        self._own = [asyncio.create_task(each) for each in work]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._own:
            task.cancel()
        await super().shutdown(sockets)
        for log in _LOGS:
            log.removeFilter(self._calm)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            try:
                taken, _ = await loop.sock_accept(listening)
            except OSError as error:
                _log.warning("no connection can be taken now: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if len(self.server_state.connections) >= self.most and not self._make_room():
                _log.warning("refused a connection: %s requests are under way", self.most)
                taken.close()
                continue
            with suppress(OSError):  # gone already
                await loop.connect_accepted_socket(self._protocol, taken)

    def _protocol(self) -> Connection:
        return Connection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a request; False where all have one under way."""
        idle = [connection for connection in self._connections() if connection.waits()[0] == "header"]
        if idle:
            _log.warning("closed a connection without a request to make room for another")
            self._close(min(idle, key=lambda connection: connection.since))
        return bool(idle)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now = time.monotonic()
            for connection in self._connections():
                waits = connection.waits()
                if waits != connection.waiting_for:
                    connection.waiting_for, connection.since = waits, now
                elif now - connection.since > LIMITS.get(waits[0], now):
                    _log.warning(f"closed a connection: {MISSING[waits[0]]} within {LIMITS[waits[0]]:g} s")
                    self._close(connection)

    def _connections(self) -> list[Connection]:
        return [each for each in self.server_state.connections if isinstance(each, Connection)]

    def _close(self, connection: Connection) -> None:
        connection.transport.abort()
        # Its room is free now, not only when the loop comes to it.
        self.server_state.connections.discard(connection)


def most_connections() -> int:
    """Connections for which there are files: each may have one of the weights open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = (limit - len(list(Path("/dev/fd").iterdir())) - RESERVED_FILES) // 2
    if possible < LEAST_CONNECTIONS:
        raise ConfigError(f"only {limit} files may be open; an inbox needs more: ulimit -n 1024")
    return min(CONNECTIONS, possible)


class Calm(logging.Filter):
    """Lets the first record of a kind pass, and then one in a while, with the number of those between."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, float] = {}
        self._kept: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = str(record.msg), time.monotonic()
        if now - self._passed.get(kind, now - CALM_SECONDS) < CALM_SECONDS:
            self._kept[kind] += 1
            return False
        self._passed[kind] = now
        if kept := self._kept.pop(kind, 0):
            record.msg = f"{kind} ({kept:,} more since the line before)"
        return True
