"""Whether a task and its verifier fit: the verifier must accept the task's own answers and reject wrong ones."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from driftproof.errors import TaskError
from driftproof.tasks.protocol import Task
from driftproof.types import Prompt, Verdict
from driftproof.verify import Item, build

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What the verifier did with right and wrong answers."""

    answers: int
    """Right answers tried, one for each prompt."""
    wrong: int
    """Wrong answers tried: a number changed, the sign flipped, digits swapped, the answer of another prompt."""
    mistakes: tuple[str, ...]
    """Of the right answers not accepted, and of the wrong ones worth as much as the right one."""

    def check(self) -> None:
        """
        Raises:
            TaskError: there are mistakes; it shows the first.
        """
        if self.mistakes:
            raise TaskError(
                f"{self.mistakes[0]} ({len(self.mistakes)} mistakes in {self.answers + self.wrong} answers)"
            )


def validate(task: Task, limit: int | None = 64, timeout_seconds: float = 5.0) -> Validation:
    r"""Try the verifier on the answers of the first `limit` prompts of each split, all of them where it is None.

    An answer is given as it stands and inside `\boxed{}`; the better of the two counts. It is right when it has a
    positive reward, wrong when it is worth less than the right one.

    Raises:
        VerifierError: the verifier cannot be built.
    """
    prompts = [prompt for split in (task.train[:limit], task.heldout[:limit]) for prompt in split]
    golds = [task.gold(prompt) for prompt in prompts]
    tried = [
        (i, answer) for i, gold in enumerate(golds) for answer in (gold, *_wrong(gold, golds[(i + 1) % len(golds)]))
    ]
    items = [
        Item(response=form, answer=prompts[i].answer, prompt=prompts[i].text)
        for i, answer in tried
        for form in (answer, f"\\boxed{{{answer}}}")
    ]
    with contextlib.closing(build(task.verifier, timeout_seconds=timeout_seconds)) as verifier:
        verdicts = verifier.score(items)
    mistakes, right = [], -math.inf
    for position, (i, answer) in enumerate(tried):
        pair = verdicts[2 * position : 2 * position + 2]
        worth = _best(pair)
        if first := position == 0 or tried[position - 1][0] != i:
            right = worth
        if worth <= 0 if first else worth >= right > 0:
            mistakes.append(_mistake(task, prompts[i], golds[i], right, None if first else answer, pair))
    return Validation(answers=len(prompts), wrong=len(tried) - len(prompts), mistakes=tuple(mistakes))


def _mistake(task: Task, prompt: Prompt, gold: str, right: float, wrong: str | None, pair: Sequence[Verdict]) -> str:
    what = (
        f"does not accept the right answer {gold!r} (worth {right})"
        if wrong is None
        else f"does not tell the right answer {gold!r} (worth {right}) from {wrong!r} (worth {_best(pair)})"
    )
    where = f"task {task.name!r}, prompt {prompt.text[:60]!r}"
    return f"{where}: verifier {task.verifier!r} {what}. {pair[1].problem}".rstrip()


def _best(verdicts: Sequence[Verdict]) -> float:
    return max((verdict.reward for verdict in verdicts if verdict.reward is not None), default=-math.inf)


def _wrong(gold: str, other: str) -> list[str]:
    """Answers that differ from `gold` in one respect each."""
    wrong = [] if _NUMBER.findall(other) == _NUMBER.findall(gold) and _NUMBER.search(gold) else [other]
    if number := _NUMBER.search(gold):
        wrong.append(f"{gold[: number.start()]}{int(number.group()) + 1}{gold[number.end() :]}")
        if gold.strip("0.") and "\\text" not in gold:
            wrong.append(gold.removeprefix("-") if gold.startswith("-") else f"-{gold}")
    if swap := re.search(r"(?<!\d)([1-9])(?!\1)([1-9])", gold):
        wrong.append(f"{gold[: swap.start()]}{swap.group(2)}{swap.group(1)}{gold[swap.end() :]}")
    return [answer for answer in dict.fromkeys(wrong) if answer.strip() != gold.strip()]
