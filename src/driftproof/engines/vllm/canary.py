"""A check after an update: the server's log-probs must be those of the snapshot.

Guarantees: what is compared goes through all layers, the output layer included, and past the server's prefix cache;
a difference that is too large, or no number, is an error with the figure.
"""

import asyncio
import json
import threading
from pathlib import Path

import httpx2
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from driftproof.engines.embedded.load import load_weights
from driftproof.engines.http import send
from driftproof.errors import EngineError
from driftproof.weights.models import UNTRUSTED

_SECONDS = 600.0
"""Time limit of the server's answer."""
SEQUENCES = 4
"""Sequences compared."""
LENGTH = 24
"""Tokens of each sequence; enough that no layer's change cancels out, too few to be felt."""


class Canary:
    """Compares prompt log-probs of fixed token sequences with those that transformers computes here, in float32.

    It keeps a second copy of the model in memory and reads every snapshot once.
    """

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
        self._snapshot: Path | None = None
        self._expected: NDArray[np.float64] = np.empty((0, 0))

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
            if self._snapshot != snapshot:
                self._snapshot = None
                load_weights(self._model, snapshot)
                tokens = torch.from_numpy(self.sequences)
                logprobs = self._model(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)
                self._expected = logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1).numpy()
                self._snapshot = snapshot
            return self._expected


async def _ask(client: httpx2.AsyncClient, url: str, sequences: list[list[int]]) -> NDArray[np.float64]:
    body = {"prompt": sequences, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
    answer = await send(client, "POST", f"{url}/v1/completions", body, seconds=_SECONDS)
    if answer.status != 200:
        raise EngineError(f"{url}/v1/completions: status {answer.status}: {answer.text.strip()[:500]}")
    try:
        choices = sorted(json.loads(answer.content)["choices"], key=lambda choice: choice["index"])
        places = [
            zip(c["prompt_logprobs"][1:], tokens[1:], strict=True) for c, tokens in zip(choices, sequences, strict=True)
        ]
        return np.array([[place[str(token)]["logprob"] for place, token in row] for row in places])
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{url} gives no prompt log-probs that the canary can read: {error!r}") from error
