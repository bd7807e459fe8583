"""The recorded engine: answers with responses that somebody else's model wrote, as text, at any time.

Guarantees: a recorded prompt gets exactly the responses and rewards that were recorded for it, in their order,
tokenized by the learner's tokenizer; nothing of it is sampled, and no behavior information is made up. Every other
prompt goes to the live engine behind it, and so do new weights.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from driftproof.engines.protocol import Capabilities, Completed, Engine, name_of
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
        """`encode` gives the token ids of a response text, the end-of-sequence token included; `live` answers the
        prompts that are not on record, if there are any."""
        self._groups = {group.prompt.index: group for group in groups}
        self._encode = encode
        self._live = live
        self._waiting: list[Request] = []

    @property
    def capabilities(self) -> Capabilities:
        follows_weights = self._live is not None and self._live.capabilities.follows_weights
        return Capabilities(logprobs=False, follows_weights=follows_weights)

    @property
    def counters(self) -> Mapping[str, float]:
        return self._live.counters if self._live else {}

    @property
    def room(self) -> int:
        """Room of the live engine, where there is one: recorded groups are answered at once and take none."""
        return self._live.room if self._live else max(0, _ROOM - sum(request.samples for request in self._waiting))

    def submit(self, request: Request) -> None:
        """Take a request; the record, unlike the live engine, gives no log-probs."""
        if request.prompt.index not in self._groups and self._live:
            self._live.submit(request)
            return
        if request.want_logprobs:
            raise EngineError(
                f"{name_of(request)}: recorded responses carry no behavior log-probs; choose an objective that needs "
                "none, such as asympo, spo or naive"
            )
        if request.prompt.index not in self._groups:
            raise EngineError(f"{name_of(request)}: no responses are recorded for it, of {len(self._groups)} groups")
        if any(waiting.key == request.key for waiting in self._waiting):
            raise EngineError(f"{name_of(request)}: a request with this key is already under way; keys must be unique")
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
        responses = []
        for position, (text, reward) in enumerate(zip(group.texts, group.rewards, strict=True)):
            finished = position not in group.unfinished
            # A response that was cut off did not end, so it has no end-of-sequence token.
            tokens = np.array(self._encode(text) if finished else self._encode(text)[:-1], dtype=np.int32)
            reason = FinishReason.STOP if finished else FinishReason.LENGTH
            responses.append(Response(tokens=tokens, finish_reason=reason, reward=reward, retokenized=True))
        return tuple(responses)
