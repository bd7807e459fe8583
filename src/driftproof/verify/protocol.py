"""The contract of a verifier: it answers every item with a verdict, in order, and no item can take it down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from driftproof.types import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A response to be scored, with everything that a verifier or a reward function may want to see.

    `Item(response="It is 18.", answer="18", prompt="What is 3 times 6?")`
    """

    response: str
    answer: str
    """The right answer, in the task's own words."""
    prompt: str


class Verifier(Protocol):
    """Scores responses against the answers of their prompts."""

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in their order; raises VerifierError if it is closed or can no longer be started."""

    def close(self) -> None:
        """End the verifier's processes; may be called more than once."""
