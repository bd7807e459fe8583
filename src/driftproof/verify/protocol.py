"""The contract of a verifier: it answers every item with a verdict, in order, and no item can take it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from driftproof.types import Verdict

Item = tuple[str, str] | tuple[str, str, str]
"""(response text, answer) or (response text, answer, prompt text); a reward function may want to see the prompt."""


class Verifier(Protocol):
    """Scores responses against the answers of their prompts."""

    @property
    def failures(self) -> Mapping[str, int]:
        """How many items got no reward so far, by cause; empty for a verifier that cannot fail."""
        ...

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in the order of `items`.

        Raises:
            VerifierError: the verifier is closed or can no longer be started.
        """
        ...

    def close(self) -> None:
        """End the verifier's processes; may be called more than once."""
        ...
