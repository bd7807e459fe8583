"""How often a verifier and the labels of recorded responses agree, and where they do not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from driftproof.types import Verdict
from driftproof.verify.protocol import Item, Verifier

if TYPE_CHECKING:
    from driftproof.tasks.protocol import RecordedGroup

_MOST_CHARACTERS = 200
"""Of the end of a response that is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """One recorded response and what its file says that it is worth."""

    line: int
    """Of its group in the file, 1-based."""
    response: int
    """Position in the group, 0-based."""
    item: Item
    label: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A response that verifier and file judge differently; `reward` is None where the verifier gave none."""

    line: int
    response: int
    reward: float | None
    label: float
    answer: str
    text: str
    """The end of the response."""
    problem: str
    """Why there is no reward, or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The share of responses with the same reward as label, of all `n`, and the others one by one."""

    agreement: float
    n: int
    disagreements: tuple[Disagreement, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def agreement(labelled: Sequence[Labelled], verifier: Verifier) -> Agreement:
    """Score the responses and compare; a response without a reward disagrees with every label.

    Raises:
        VerifierError: the verifier can no longer be started.
    """
    with contextlib.closing(verifier):
        return compare(labelled, verifier.score([one.item for one in labelled]))


def compare(labelled: Sequence[Labelled], verdicts: Sequence[Verdict]) -> Agreement:
    """Verdicts against labels, in order; at least one of each."""
    disagreements = tuple(
        Disagreement(
            line=one.line,
            response=one.response,
            reward=verdict.reward,
            label=one.label,
            answer=one.item.answer,
            text=one.item.response[-_MOST_CHARACTERS:],
            problem=verdict.problem,
        )
        for one, verdict in zip(labelled, verdicts, strict=True)
        if verdict.reward != one.label
    )
    share = 1 - len(disagreements) / len(labelled)
    return Agreement(agreement=share, n=len(labelled), disagreements=disagreements)


def labelled_responses(groups: Iterable[RecordedGroup]) -> list[Labelled]:
    """The responses of recorded groups, which lie one a line in their file (`driftproof.tasks.read_recorded`)."""
    return [
        Labelled(
            line=line,
            response=position,
            item=Item(response=text, answer=group.prompt.answer, prompt=group.prompt.text),
            label=reward,
        )
        for line, group in enumerate(groups, start=1)
        for position, (text, reward) in enumerate(zip(group.texts, group.rewards, strict=True))
    ]
