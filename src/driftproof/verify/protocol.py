"""The contract of a verifier: it answers every item with a verdict, in order, and no item can take it down."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np

from driftproof.types import Prompt, Tokens, Verdict


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """A response to be scored, with everything that a verifier or a reward function may want to see.

    `Item(response="It is 18.", answer="18", prompt="What is 3 times 6?")`
    """

    response: str
    answer: str
    """The right answer, in the task's own words."""
    prompt: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the prompt's row, JSON values."""
    messages: tuple[Mapping[str, str], ...] = ()
    """The prompt as a conversation, role and content of each message, where the data has it so."""
    tokens: Tokens = field(default_factory=lambda: np.empty(0, np.int32))
    """Token ids of the response, int32 [T]; empty where they are not known."""
    group: int | None = None
    """Number that the responses of one group share in a call; None: compared with no other."""

    @classmethod
    def of(cls, prompt: Prompt, response: str, tokens: Tokens | None = None, group: int | None = None) -> Self:
        """A response to a prompt of a task."""
        return cls(
            response=response,
            answer=prompt.answer,
            prompt=prompt.text,
            columns=prompt.columns,
            messages=prompt.messages if prompt.conversational else (),
            tokens=np.empty(0, np.int32) if tokens is None else tokens,
            group=group,
        )

    def saying(self, response: str) -> Self:
        """Another response to the same prompt."""
        return replace(self, response=response, tokens=np.empty(0, np.int32), group=None)

    def fields(self, needed: Iterable[str]) -> dict[str, Any]:
        """The named fields as JSON values."""
        found = {name: getattr(self, name) for name in needed}
        return found if "tokens" not in found else {**found, "tokens": self.tokens.tolist()}


class Verifier(Protocol):
    """Scores responses against the answers of their prompts."""

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in their order; raises VerifierError if it is closed or can no longer be started."""

    def close(self) -> None:
        """End the verifier's processes; may be called more than once."""
