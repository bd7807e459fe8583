"""The recorded engine: answers with responses that somebody else's model wrote, as text, at any time.

Guarantees: a recorded prompt gets exactly the responses and rewards that were recorded for it, in their order,
tokenized by the learner's tokenizer; nothing of it is sampled, and no behavior information is made up. Every other
prompt goes to the live engine behind it, and so do new weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from driftproof.engines.protocol import Capabilities, Completed, Engine
from driftproof.errors import EngineError
from driftproof.tasks.protocol import RecordedGroup
from driftproof.types import FinishReason, Request, Response

_ROOM = 64
"""Responses answered by one call of `collect`, about; tokenizing them must not keep a worker from its other work."""


class RecordedEngine:
    """Looks requests up by `request.prompt.index`. The recorded group is the group: `samples` and `sampling` are not
    looked at, so a request gets as many responses as there are on record, each at its full length."""

    def __init__(
        self, groups: Iterable[RecordedGroup], encode: Callable[[str], list[int]], live: Engine | None = None
    ) -> None:
        """
        Args:
            groups: the record, by the indices of its prompts.
            encode: token ids of a response text, the end-of-sequence token included.
            live: answers the prompts that are not on record; None where all are.
        """
        self._groups = {group.prompt.index: group for group in groups}
        self._encode = encode
        self._live = live
        self._waiting: list[Request] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            logprobs=False, follows_weights=bool(self._live and self._live.capabilities.follows_weights)
        )

    @property
    def counters(self) -> Mapping[str, float]:
        return self._live.counters if self._live else {}

    @property
    def room(self) -> int:
        """Room of the live engine, where there is one: recorded groups are answered at once and take none."""
        return self._live.room if self._live else max(0, _ROOM - sum(request.samples for request in self._waiting))

    def submit(self, request: Request) -> None:
        """Take a request.

        Raises:
            EngineError: log-probs are wanted of a recorded group, nothing is recorded and there is no live engine, or
                the live engine refuses.
        """
        if request.prompt.index not in self._groups and self._live:
            self._live.submit(request)
            return
        where = f"request {request.key} (prompt {request.prompt.index})"
        if request.want_logprobs:
            raise EngineError(
                f"{where}: recorded responses carry no behavior log-probs; choose an objective that needs none, such "
                "as asympo, spo or naive"
            )
        if request.prompt.index not in self._groups:
            raise EngineError(
                f"{where}: no responses are recorded for this prompt; {len(self._groups)} groups are known"
            )
        if any(waiting.key == request.key for waiting in self._waiting):
            raise EngineError(f"{where}: a request with this key is already under way; keys must be unique")
        self._waiting.append(request)

    def collect(self) -> list[Completed]:
        """Answer what is on record of everything submitted since the last call, and let the live engine work."""
        waiting, self._waiting = self._waiting, []
        recorded = [Completed(request=request, responses=self._responses(request)) for request in waiting]
        return [*recorded, *(self._live.collect() if self._live else ())]

    def load(self, snapshot: Path) -> None:
        """Hand new weights to the live engine; recorded text does not change with them."""
        if self._live:
            self._live.load(snapshot)

    def close(self) -> None:
        self._waiting.clear()
        if self._live:
            self._live.close()

    def _responses(self, request: Request) -> tuple[Response, ...]:
        group = self._groups[request.prompt.index]
        return tuple(
            self._response(text, reward, finished=position not in group.unfinished)
            for position, (text, reward) in enumerate(zip(group.texts, group.rewards, strict=True))
        )

    def _response(self, text: str, reward: float, *, finished: bool) -> Response:
        tokens = self._encode(text)
        return Response(
            # A response that was cut off did not end, so it has no end-of-sequence token.
            tokens=np.array(tokens if finished else tokens[:-1], dtype=np.int32),
            finish_reason=FinishReason.STOP if finished else FinishReason.LENGTH,
            reward=reward,
            retokenized=True,
        )
