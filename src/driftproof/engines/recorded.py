"""The recorded engine: answers with responses that somebody else's model wrote, as text, at any time.

Guarantees: a prompt gets exactly the responses and rewards that were recorded for it, in their order, tokenized by the
learner's tokenizer; nothing is sampled, and no behavior information is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from driftproof.engines.protocol import Capabilities, Completed
from driftproof.errors import EngineError
from driftproof.types import FinishReason, Request, Response

if TYPE_CHECKING:
    from driftproof.tasks.recorded import RecordedGroup

_ROOM = 64
"""Responses answered by one call of `collect`, about; tokenizing them must not keep a worker from its other work."""


class RecordedEngine:
    """Looks requests up by `request.prompt.index`. The recorded group is the group: `samples` and `sampling` are not
    looked at, so a request gets as many responses as there are on record, each at its full length."""

    def __init__(
        self, groups: Mapping[int, RecordedGroup] | Sequence[RecordedGroup], encode: Callable[[str], list[int]]
    ) -> None:
        """
        Args:
            groups: recorded groups by prompt index.
            encode: token ids of a response text, the end-of-sequence token included.
        """
        self._groups = groups if isinstance(groups, Mapping) else dict(enumerate(groups))
        self._encode = encode
        self._waiting: list[Request] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(logprobs=False, follows_weights=False)

    @property
    def counters(self) -> dict[str, float]:
        return {}

    @property
    def room(self) -> int:
        return max(0, _ROOM - sum(request.samples for request in self._waiting))

    def submit(self, request: Request) -> None:
        """Take a request.

        Raises:
            EngineError: log-probs are wanted, or nothing is recorded for the prompt.
        """
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
        """Answer everything submitted since the last call."""
        waiting, self._waiting = self._waiting, []
        return [Completed(request=request, responses=self._responses(request)) for request in waiting]

    def load(self, snapshot: Path) -> None:
        """Does nothing, as `capabilities.follows_weights` says: recorded text does not change with the weights."""

    def close(self) -> None:
        self._waiting.clear()

    def _responses(self, request: Request) -> tuple[Response, ...]:
        group = self._groups[request.prompt.index]
        return tuple(
            self._response(text, reward, finished=position not in group.unfinished)
            for position, (text, reward) in enumerate(zip(group.texts, group.rewards, strict=True))
        )

    def _response(self, text: str, reward: float, *, finished: bool) -> Response:
        tokens = self._encode(text)
        return Response(
            # What was cut off did not end, so it has no end-of-sequence token.
            tokens=np.array(tokens if finished else tokens[:-1], dtype=np.int32),
            finish_reason=FinishReason.STOP if finished else FinishReason.LENGTH,
            reward=reward,
            retokenized=True,
        )
