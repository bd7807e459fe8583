"""How often a verifier and the labels of recorded responses agree, and where they do not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from driftproof.tasks.protocol import RecordedGroup
from driftproof.verify import Item, Verifier

MOST_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A recorded response that verifier and file judge differently."""

    line: int
    """Line of its group in the file, 1-based."""
    response: int
    """Position in the group, 0-based."""
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


def agreement(groups: Sequence[RecordedGroup], verifier: Verifier) -> Agreement:
    """Score recorded groups, which lie one a line in their file; a response without a reward disagrees, one without a
    label is left out."""
    labelled = [
        (line, position, Item.of(group.prompt, text), label)
        for line, group in enumerate(groups, start=1)
        for position, (text, label) in enumerate(zip(group.texts, group.rewards, strict=True))
        if not math.isnan(label)
    ]
    verdicts = verifier.score([item for _, _, item, _ in labelled])
    disagreements = tuple(
        Disagreement(
            line=line,
            response=position,
            reward=verdict.reward,
            label=label,
            answer=item.answer,
            text=item.response[-MOST_CHARACTERS:],
            problem=verdict.problem,
        )
        for (line, position, item, label), verdict in zip(labelled, verdicts, strict=True)
        if verdict.reward != label
    )
    return Agreement(agreement=1 - len(disagreements) / len(labelled), n=len(labelled), disagreements=disagreements)
