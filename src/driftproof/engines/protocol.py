"""The contract between a rollout worker and whatever writes responses.

Every submitted request comes out of `collect` exactly once: answered, or with the error that ended it.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from driftproof.errors import EngineError
from driftproof.types import Request, Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Abilities of an engine, checked against the objective's needs before a run starts."""

    logprobs: bool
    """Can return the log-probs of the distribution it sampled from."""
    follows_weights: bool
    """Can take new snapshots; False for recorded traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A request that came to its end."""

    request: Request
    responses: tuple[Response, ...]
    """`request.samples` of them, or as many as are on record; empty when `error` is set."""
    error: str = ""
    """Empty, or why the engine could not answer."""


class Engine(Protocol):
    """Writes responses; requests beyond `room` wait their turn.

    `load` may be called between any two calls of `collect`; work under way goes on with it.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def counters(self) -> Mapping[str, float]:
        """Counts since the start that an operator should see; {} where there is nothing to count."""

    @property
    def room(self) -> int:
        """Responses that can be written at once beside those under way, without queueing."""

    def submit(self, request: Request) -> None:
        """Take a request; EngineError where it can never be answered (as one that is too long)."""

    def collect(self) -> list[Completed]:
        """Work for a moment (one decode step, one poll) and return what was completed by it; [] when idle."""

    def load(self, snapshot: Path) -> None:
        """Take the weights of a snapshot directory; responses under way continue with them.

        EngineError: not a snapshot of this engine's model. FileNotFoundError: no snapshot there, or no longer.
        """

    def close(self) -> None: ...


def check_request(request: Request, *, under_way: Container[int], vocabulary: int, max_length: int | None) -> None:
    """Raise EngineError for a request that can never be answered: its key is among those `under_way`, it wants no
    samples, or its prompt is empty, has ids outside `vocabulary`, or fills the context of `max_length`, where known.
    """
    prompt, where = request.prompt_tokens, name_of(request)
    if request.key in under_way:
        raise EngineError(f"{where}: a request with this key is already under way; keys must be unique")
    if request.samples < 1:
        raise EngineError(f"{where}: samples is {request.samples}; at least 1 response must be wanted")
    if not len(prompt):
        raise EngineError(f"{where}: the prompt has no tokens")
    if max_length is not None and len(prompt) >= max_length:
        raise EngineError(
            f"{where}: the prompt has {len(prompt)} tokens and leaves no room for a response in a context of "
            f"{max_length}; drop the prompt or make the context longer (vLLM: --max-model-len, llama.cpp: --ctx-size)"
        )
    if prompt.min() < 0 or prompt.max() >= vocabulary:
        raise EngineError(
            f"{where}: token ids range from {prompt.min()} to {prompt.max()}, the model's vocabulary from 0 to "
            f"{vocabulary - 1}; the tokenizer belongs to another model"
        )


def name_of(request: Request) -> str:
    """The name of a request in messages."""
    return f"request {request.key} (prompt {request.prompt.index})"


def generate(engine: Engine, requests: Sequence[Request]) -> list[tuple[Response, ...]]:
    """Responses of an idle engine to each of `requests`, in their order; EngineError where one is refused or fails."""
    if len({request.key for request in requests}) != len(requests):
        raise ValueError("request keys must be unique")
    for request in requests:
        engine.submit(request)
    answers: dict[int, tuple[Response, ...]] = {}
    while len(answers) < len(requests):
        for completed in engine.collect():
            if completed.error:
                raise EngineError(completed.error)
            answers[completed.request.key] = completed.responses
    return [answers[request.key] for request in requests]
