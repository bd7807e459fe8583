"""A verifier made of reward functions that run in killable processes.

Guarantees: `score` gives every item a verdict, in order, whatever the functions do. A response that breaks functions
which otherwise answer, by time, memory, an exception or a value that is no number, gets the reward that
`verify.on_timeout` says, and the reason; where the functions are broken themselves, it has no reward, and the reason.
Which of the two it is depends on nothing but the responses to the same prompt in the same call, and the gold answer.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from driftproof.errors import VerifierError
from driftproof.types import Verdict
from driftproof.verify.processes import Outcome, Processes
from driftproof.verify.protocol import Item
from driftproof.verify.settings import DEFAULT_MEMORY_GIB

OnTimeout = Literal["zero", "none"] | float
NO_REWARD = "the verifier gave no reward (None)"


class VerifierPool:
    """`processes` processes that each run `functions`, every one a "package.module:function", one item at a time.

    A reward is the sum of those that the functions give, each times its weight (1 unless given); None where none of
    them gives one. `labels` are the functions' names in metrics. An item may take `timeout_seconds` of wall time; with
    `together` that is the time of a group, which functions of TRL's form are given at once. `score` must not be called
    by two threads at once. VerifierError for an argument out of range, or a function that cannot be imported.
    """

    def __init__(
        self,
        functions: str | Sequence[str],
        *,
        processes: int,
        timeout_seconds: float,
        weights: Sequence[float] = (),
        labels: Sequence[str] = (),
        on_timeout: OnTimeout = "zero",
        memory_gib: float = DEFAULT_MEMORY_GIB,
        together: bool = False,
    ) -> None:
        names = (functions,) if isinstance(functions, str) else tuple(functions)
        self._weights = checked_weights(names, weights)
        self._labels = tuple(labels) or labels_of(names)
        self.broken_reward = {"zero": 0.0, "none": None}[on_timeout] if isinstance(on_timeout, str) else on_timeout
        """Reward of a response that breaks the functions."""
        self.together = together
        """Whether `score` gives functions that can compare them the responses of a group at once."""
        memory_bytes = int(memory_gib * 2**30)
        self._processes = Processes(names, count=processes, timeout_seconds=timeout_seconds, memory_bytes=memory_bytes)

    @property
    def failures(self) -> Mapping[str, int]:
        """Timeouts, crashes and invalid rewards since the start."""
        return self._processes.failures

    @property
    def compares(self) -> bool:
        """Whether a function can be given the responses of a group at once."""
        return self._processes.compares

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in their order; raises VerifierError if the pool is closed or cannot start anew."""
        return self._score(items, together=self.together)

    def score_together(self, items: Sequence[Item]) -> list[Verdict]:
        """The same, with the responses of a group given at once to functions that can compare them."""
        return self._score(items, together=True)

    def _score(self, items: Sequence[Item], *, together: bool) -> list[Verdict]:
        outcomes = self._processes.ask(items, together=together)
        works = self._works(items, outcomes) if any(outcome.problem for outcome in outcomes) else {}
        return [
            self._verdict(outcome, outcome.problem != "" and works[_question(item)])
            for item, outcome in zip(items, outcomes, strict=True)
        ]

    def close(self) -> None:
        """Kill the processes; may be called more than once."""
        self._processes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _works(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> dict[tuple[str, str], bool]:
        """Whether the functions can answer, for each prompt to which a response failed."""
        answered = {_question(item) for item, outcome in zip(items, outcomes, strict=True) if not outcome.problem}
        failed = {_question(item): item for item, outcome in zip(items, outcomes, strict=True) if outcome.problem}
        works = {question: question in answered for question in failed}
        if self.broken_reward is not None and not all(works.values()):
            doubtful = [item for question, item in failed.items() if not works[question]]
            texts = ("{}", "\\boxed{{{}}}")
            golds = [item.saying(text.format(item.answer or "none")) for item in doubtful for text in texts]
            for item, outcome in zip(golds, self._processes.ask(golds), strict=True):
                works[_question(item)] |= not outcome.problem
        return works

    def _verdict(self, outcome: Outcome, its_own: bool) -> Verdict:
        """The verdict of an outcome; `its_own` says whether a failure is the response's own."""
        if outcome.problem:
            return Verdict(reward=self.broken_reward if its_own else None, problem=outcome.problem)
        if len(outcome.rewards) == 1 and self._weights == (1.0,):
            (reward,) = outcome.rewards
            return Verdict(reward=reward, problem=NO_REWARD if reward is None else "")
        given = [w * reward for w, reward in zip(self._weights, outcome.rewards, strict=True) if reward is not None]
        total = sum(given) if given else None
        if total is not None and not math.isfinite(total):
            return Verdict(
                reward=self.broken_reward, problem=f"the weighted sum of the rewards {outcome.rewards} is {total}"
            )
        parts = tuple(zip(self._labels, outcome.rewards, strict=True)) if len(self._labels) > 1 else ()
        return Verdict(reward=total, problem=NO_REWARD if total is None else "", parts=parts)


def _question(item: Item) -> tuple[str, str]:
    return item.prompt, item.answer


def checked_weights(names: Sequence[str], weights: Sequence[float]) -> tuple[float, ...]:
    """A weight for each function, 1 where none are given; VerifierError where they do not fit."""
    if not names:
        raise VerifierError("task.verifier is an empty list; name at least one function")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise VerifierError(f"task.verifier names {twice[0]!r} twice; name it once, with the sum of its weights")
    if not weights:
        return (1.0,) * len(names)
    if len(weights) != len(names):
        raise VerifierError(
            f"task.weights has {len(weights)} numbers for {len(names)} functions of task.verifier; give one for each"
        )
    if bad := [weight for weight in weights if not math.isfinite(weight)]:
        raise VerifierError(f"task.weights has {bad[0]}; a weight must be a finite number")
    if not any(weights):
        raise VerifierError("task.weights are all 0, so that every reward is; give at least one another value")
    return tuple(map(float, weights))


def labels_of(names: Sequence[str]) -> tuple[str, ...]:
    """The functions' names in metrics: the function's own, with its module where two have the same."""
    short = [name.rpartition(":")[2] for name in names]
    chosen = [of if short.count(of) == 1 else name for of, name in zip(short, names, strict=True)]
    return tuple(re.sub(r"[^\w.-]", ".", name) for name in chosen)
