"""Brings snapshots to vLLM servers over HTTP, and checks that they arrived.

Guarantees: requests under way are kept and go on with the new weights (vLLM computes their cache anew, and forgets the
prefixes of old weights); whatever fails, the server is asked to resume; `update` returns only when the server has the
snapshot, and, with a canary, answers with its log-probs: through all layers, and past the server's prefix cache.
"""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from driftproof.engines.embedded.load import load_weights
from driftproof.engines.http import open_client, send
from driftproof.errors import EngineError
from driftproof.weights.models import UNTRUSTED

_HINT = (
    'start vLLM with VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config \'{"backend": "driftproof"}\' from a Python '
    "environment that has driftproof, or let us start it: --engine.launch true"
)
_INIT = "/init_weight_transfer_engine"
_RESUME_PAUSE_SECONDS = 0.2
_MESSAGE = 500
"""Most characters of a server's own message that are passed on."""
_CANARY_SECONDS = 600.0
"""Time limit of the canary's answer."""
SEQUENCES = 4
"""Sequences that the canary compares."""
LENGTH = 24
"""Tokens of each sequence; enough that no layer's change cancels out, too few to be felt."""


class Canary:
    """Compares prompt log-probs of fixed token sequences with those that transformers computes here, in float32, by a
    second copy of the model, which reads every snapshot once."""

    def __init__(self, model: Path, *, tolerance: float = 1e-3) -> None:
        """`tolerance`: largest difference of a token's log-prob, in nats; 1e-3 suits a server in float32."""
        if not tolerance > 0:
            raise ValueError(f"the canary's tolerance is {tolerance}; it must be a positive number of nats")
        self.tolerance = tolerance
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, **UNTRUSTED
        ).eval()
        vocabulary = self._model.config.get_text_config().vocab_size
        self.sequences = np.random.default_rng(0).integers(0, vocabulary, (SEQUENCES, LENGTH))
        self._lock = threading.Lock()
        self._known: tuple[Path, NDArray[np.float64]] | None = None

    async def check(self, client: httpx2.AsyncClient, server_url: str, snapshot: Path) -> float:
        """The largest difference found, in nats; EngineError where it is above the tolerance, or cannot be found."""
        expected = await asyncio.to_thread(self.expected, snapshot)
        found = await _ask(client, server_url, self.sequences.tolist())
        difference = float(np.abs(found - expected).max())
        if not difference <= self.tolerance:
            raise EngineError(
                f"{server_url} does not answer with the weights of {snapshot.name}: its log-probs differ by up to "
                f"{difference:.3g} nats, {self.tolerance:g} is tolerated. Restart the server; if it computes in "
                "bfloat16, raise engine.canary_tolerance"
            )
        return difference

    @torch.no_grad()
    def expected(self, snapshot: Path) -> NDArray[np.float64]:
        """[SEQUENCES, LENGTH - 1]: log-probs of all tokens but the first, by the weights of `snapshot`."""
        with self._lock:
            if self._known is None or self._known[0] != snapshot:
                self._known = None
                load_weights(self._model, snapshot)
                tokens = torch.from_numpy(self.sequences)
                logprobs = self._model(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)
                self._known = snapshot, logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1).numpy()
            return self._known[1]


class VllmUpdater:
    """Updates one server a call, each request within `timeout_seconds`; it must see the snapshot under the same path.

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
        """Bring the weights of `snapshot` to the server; EngineError where it does not have them, FileNotFoundError
        where there is no snapshot, or no longer."""
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


async def _ask(client: httpx2.AsyncClient, url: str, sequences: list[list[int]]) -> NDArray[np.float64]:
    body = {"prompt": sequences, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
    answer = await send(client, "POST", f"{url}/v1/completions", body, seconds=_CANARY_SECONDS)
    if answer.status != 200:
        raise EngineError(f"{url}/v1/completions: status {answer.status}: {answer.text.strip()[:_MESSAGE]}")
    try:
        choices = sorted(json.loads(answer.content)["choices"], key=lambda choice: choice["index"])
        places = [
            zip(c["prompt_logprobs"][1:], tokens[1:], strict=True) for c, tokens in zip(choices, sequences, strict=True)
        ]
        return np.array([[place[str(token)]["logprob"] for place, token in row] for row in places])
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{url} gives no prompt log-probs that the canary can read: {error!r}") from error
