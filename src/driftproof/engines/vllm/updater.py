"""Brings snapshots to vLLM servers over HTTP: pause, init, start, update, finish, resume.

Guarantees: requests under way are kept and go on with the new weights (vLLM computes their cache anew, and forgets the
prefixes of old weights); whatever fails, the server is asked to resume; `update` returns only when the server has the
snapshot, and, with a canary, answers with its log-probs.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from driftproof.engines.http import open_client, send
from driftproof.engines.vllm.canary import Canary
from driftproof.errors import EngineError

_HINT = (
    'start vLLM with VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config \'{"backend": "driftproof"}\' from a Python '
    "environment that has driftproof, or let us start it: --engine.launch true"
)
_INIT = "/init_weight_transfer_engine"
_RESUME_PAUSE_SECONDS = 0.2
_MESSAGE = 500
"""Most characters of a server's own message that are passed on."""


class VllmUpdater:
    """Updates one server a call, each request of it within `timeout_seconds`; the server must see the snapshot under
    the same path.

    `counters`: updates done, the seconds they took, and the largest difference that the canary let pass, in nats.
    """

    def __init__(
        self, *, canary: Canary | None = None, api_key_variable: str = "", timeout_seconds: float = 600.0
    ) -> None:
        self.canary = canary
        self.counters = {"weight_updates": 0.0, "weight_update_seconds": 0.0, "canary_difference": 0.0}
        self._api_key_variable = api_key_variable
        self._timeout_seconds = timeout_seconds

    async def update(self, server_url: str, snapshot: Path) -> None:
        """Bring the weights of `snapshot` to the server.

        Raises:
            EngineError: it cannot take them, did not answer in time, or its log-probs are not those of the snapshot.
            FileNotFoundError: no snapshot there, or no longer.
        """
        started = time.monotonic()
        path = snapshot.resolve()
        if not path.is_dir():
            raise FileNotFoundError(f"no snapshot {snapshot}")
        # A server that failed at one call may close its connection, which the next one would then find closed.
        async with open_client(self._api_key_variable, reuse=False) as client:
            try:
                await _transfer(partial(_call, client, server_url, self._timeout_seconds), path)
            except EngineError as error:
                if not path.is_dir():
                    raise FileNotFoundError(f"{snapshot} was removed while {server_url} read it") from error
                raise
            seconds = time.monotonic() - started
            difference = await self.canary.check(client, server_url, path) if self.canary else 0.0
        self.counters["weight_updates"] += 1
        self.counters["weight_update_seconds"] += seconds
        self.counters["canary_difference"] = max(self.counters["canary_difference"], difference)


async def _transfer(call: Callable[..., Awaitable[None]], path: Path) -> None:
    """All calls of an update; whatever fails, the server is asked to resume."""
    try:
        await call("/pause", params={"mode": "keep", "clear_cache": "true"})
        await call(_INIT, {"init_info": {}})
        try:
            await call("/start_weight_update")
        except EngineError:
            # Somebody was killed in the middle of an update; with our backend nothing of it is left to be done.
            with suppress(EngineError):
                await call("/finish_weight_update")
            await call("/start_weight_update")
        await call("/update_weights", {"update_info": {"path": str(path)}})
        await call("/finish_weight_update", {"weight_version": path.name})
    except EngineError as error:
        try:
            await _resume(call)
        except EngineError as paused:
            raise EngineError(f"{error}; and it could not be resumed: {paused}") from error
        raise
    await _resume(call)


async def _resume(call: Callable[..., Awaitable[None]]) -> None:
    """Resume, asked twice: a server that failed may break one more connection, and must not stay paused."""
    try:
        await call("/resume")
    except EngineError:
        await asyncio.sleep(_RESUME_PAUSE_SECONDS)
        await call("/resume")


async def _call(
    client: httpx2.AsyncClient, url: str, seconds: float, route: str, body: Any = None, params: Any = None
) -> None:
    """Make one call; EngineError, with the server's words and the remedy, where it answers something else than 200."""
    answer = await send(client, "POST", url + route, body, seconds=seconds, params=params)
    if answer.status in (401, 403):
        raise EngineError(f"{url}{route}: status {answer.status}; the server wants another API key")
    if answer.status == 404:
        raise EngineError(f"{url} has no {route}: {_HINT}")
    if answer.status != 200:
        hint = f"; {_HINT}" if route == _INIT else ""
        raise EngineError(f"{url}{route}: status {answer.status}: {answer.text.strip()[:_MESSAGE]}{hint}")
