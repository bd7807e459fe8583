"""The mixed engine: a live engine and recorded groups, each asked for its own prompts.

Guarantees: what is recorded is never sampled and what is live never looked up; new weights reach the live engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from driftproof.engines.protocol import Capabilities, Completed, Engine
from driftproof.engines.recorded import RecordedEngine
from driftproof.types import Request


class MixedEngine:
    """Requests for prompts from `first_recorded` on go to the recorded engine, the others to the live one."""

    def __init__(self, live: Engine, recorded: RecordedEngine, first_recorded: int) -> None:
        self._live = live
        self._recorded = recorded
        self._first_recorded = first_recorded

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(logprobs=False, follows_weights=self._live.capabilities.follows_weights)

    @property
    def counters(self) -> Mapping[str, float]:
        return self._live.counters

    @property
    def room(self) -> int:
        """That of the live engine: what is recorded is answered at once, and takes none."""
        return self._live.room

    def submit(self, request: Request) -> None:
        """Take a request.

        Raises:
            EngineError: as the engine that the prompt belongs to.
        """
        recorded = request.prompt.index >= self._first_recorded
        (self._recorded if recorded else self._live).submit(request)

    def collect(self) -> list[Completed]:
        return [*self._recorded.collect(), *self._live.collect()]

    def load(self, snapshot: Path) -> None:
        self._live.load(snapshot)

    def close(self) -> None:
        self._live.close()
        self._recorded.close()
