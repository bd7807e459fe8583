"""Exact match: the response is the answer, nothing more, apart from white space around it."""

from collections.abc import Mapping, Sequence

from driftproof.types import Verdict
from driftproof.verify.protocol import Item


def exact(text: str, answer: str) -> float:
    """1.0 where `text` equals `answer` after stripping white space from both ends, else 0.0."""
    return 1.0 if text.strip() == answer.strip() else 0.0


class ExactVerifier:
    """Exact match in this process: a string comparison can neither hang nor crash; rewards are 1.0 or 0.0."""

    failures: Mapping[str, int] = {}

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        return [Verdict(reward=exact(item.response, item.answer)) for item in items]

    def close(self) -> None: ...
