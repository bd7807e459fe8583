"""Whether a task and its verifier fit: the verifier must accept the task's own answers and reject wrong ones."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

from driftproof.tasks.protocol import Task, TaskError
from driftproof.types import Verdict
from driftproof.verify import build


def validate(task: Task, limit: int = 64) -> None:
    r"""Try the verifier on the answers of the first `limit` prompts of each split.

    An answer is given as it stands and inside `\boxed{}`; the better of the two counts.

    Raises:
        TaskError: naming the first prompt whose right answer is not worth more than a wrong one.
        VerifierError: the verifier cannot be built.
    """
    prompts = [*task.train[:limit], *task.heldout[:limit]]
    items = [
        (form, prompt.answer)
        for prompt in prompts
        for answer in (prompt.answer, _wrong(prompt.answer))
        for form in _forms(answer)
    ]
    with contextlib.closing(build(task.verifier)) as verifier:
        verdicts = verifier.score(items)
    for i, prompt in enumerate(prompts):
        right, wrong = verdicts[4 * i : 4 * i + 2], verdicts[4 * i + 2 : 4 * i + 4]
        if _best(right) <= _best(wrong):
            raise TaskError(
                f"task {task.name!r}, prompt {prompt.text[:60]!r}: verifier {task.verifier!r} does not tell the right "
                f"answer {prompt.answer!r} (worth {_best(right)}) from {_wrong(prompt.answer)!r} "
                f"(worth {_best(wrong)}). {right[0].problem}".rstrip()
            )


def _best(verdicts: Sequence[Verdict]) -> float:
    return max((verdict.reward for verdict in verdicts if verdict.reward is not None), default=-math.inf)


def _forms(answer: str) -> tuple[str, str]:
    return answer, f"\\boxed{{{answer}}}"


def _wrong(answer: str) -> str:
    """An answer that differs from `answer`: one more where it is an integer, else a number nobody expects."""
    return str(int(answer) + 1) if answer.removeprefix("-").isdecimal() else "-98765.4321"
