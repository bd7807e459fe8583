"""Brings snapshots to vLLM servers over HTTP: pause, init, start, update, finish, resume.

Guarantees: requests under way are kept and go on with the new weights (vLLM computes their cache anew, and forgets the
prefixes of old weights); whatever fails, the server is asked to resume; `update` returns only when the server has the
snapshot, and, with a canary, answers with its log-probs. May be called from several threads at once.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from driftproof.errors import EngineError

if TYPE_CHECKING:
    from driftproof.engines.vllm.canary import Canary

_HINT = (
    'start vLLM with VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config \'{"backend": "driftproof"}\' from a Python '
    "environment that has driftproof, or let us start it: --engine.launch true"
)
_INIT = "/init_weight_transfer_engine"
_RESUME_PAUSES = (0.05, 0.2, 1.0)
"""Seconds between attempts to resume."""
_MESSAGE = 500
"""Most characters of a server's own message that are passed on."""


class VllmUpdater:
    """Updates one server a call; the server must see the snapshot under the same path."""

    name = "vllm"

    def __init__(self, *, canary: Canary | None = None, api_key: str = "", timeout_seconds: float = 600.0) -> None:
        """`timeout_seconds` is for each of the calls of an update."""
        self.canary = canary
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = httpx2.Timeout(timeout_seconds, connect=10.0)
        self._lock = threading.Lock()
        self._counters = {"weight_updates": 0.0, "weight_update_seconds": 0.0, "canary_difference": 0.0}

    @property
    def counters(self) -> dict[str, float]:
        """Updates done, the seconds they took, and the largest difference that the canary let pass, in nats."""
        with self._lock:
            return dict(self._counters)

    def update(self, server_url: str, snapshot: Path) -> None:
        """Bring the weights of `snapshot` to the server.

        Raises:
            EngineError: it cannot take them, did not answer in time, or its log-probs are not those of the snapshot.
            FileNotFoundError: no snapshot there, or no longer.
        """
        started = time.monotonic()
        path = snapshot.resolve()
        if not path.is_dir():
            raise FileNotFoundError(f"no snapshot {snapshot}")
        # Proxies of the environment are not for a server that is named by its address.
        with httpx2.Client(headers=self._headers, timeout=self._timeout, trust_env=False) as client:
            try:
                self._transfer(client, server_url, path)
            except EngineError as error:
                if not path.is_dir():
                    raise FileNotFoundError(f"{snapshot} was removed while {server_url} read it") from error
                raise
            seconds = time.monotonic() - started
            difference = self.canary.check(client, server_url, path) if self.canary else 0.0
        with self._lock:
            self._counters["weight_updates"] += 1
            self._counters["weight_update_seconds"] += seconds
            self._counters["canary_difference"] = max(self._counters["canary_difference"], difference)

    def _transfer(self, client: httpx2.Client, url: str, path: Path) -> None:
        try:
            _post(client, url, "/pause", params={"mode": "keep", "clear_cache": "true"})
            _post(client, url, _INIT, {"init_info": {}})
            self._begin(client, url)
            _post(client, url, "/update_weights", {"update_info": {"path": str(path)}})
            _post(client, url, "/finish_weight_update", {"weight_version": path.name})
        except EngineError as error:
            try:
                _resume(client, url)
            except EngineError as paused:
                raise EngineError(f"{error}; and it could not be resumed: {paused}") from error
            raise
        _resume(client, url)

    def _begin(self, client: httpx2.Client, url: str) -> None:
        try:
            _post(client, url, "/start_weight_update")
        except EngineError:
            # Somebody was killed in the middle of an update; with our backend nothing of it is left to be done.
            with suppress(EngineError):
                _post(client, url, "/finish_weight_update")
            _post(client, url, "/start_weight_update")


def _resume(client: httpx2.Client, url: str) -> None:
    """A server that failed at one call closes its connection, which the next one then finds closed: ask again."""
    for seconds in _RESUME_PAUSES:
        try:
            return _post(client, url, "/resume")
        except EngineError:
            time.sleep(seconds)
    _post(client, url, "/resume")


def _post(
    client: httpx2.Client,
    url: str,
    route: str,
    body: dict[str, Any] | None = None,
    params: dict[str, str] | None = None,
) -> None:
    """
    Raises:
        EngineError: no answer, or another than 200; with what the server said and what to do.
    """
    try:
        response = client.post(url + route, json=body, params=params)
    except httpx2.TimeoutException as error:
        raise EngineError(f"{url}{route}: no answer in time ({type(error).__name__})") from error
    except httpx2.HTTPError as error:
        raise EngineError(f"{url}{route}: {type(error).__name__}: {error}") from error
    if response.status_code in (401, 403):
        raise EngineError(f"{url}{route}: status {response.status_code}; the server wants another API key")
    if response.status_code == 404:
        raise EngineError(f"{url} has no {route}: {_HINT}")
    if response.status_code != 200:
        hint = f"; {_HINT}" if route == _INIT else ""
        raise EngineError(f"{url}{route}: status {response.status_code}: {response.text.strip()[:_MESSAGE]}{hint}")
