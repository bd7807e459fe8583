"""Rewards tried before they are trusted: right and wrong answers to a few prompts, scored as in the run.

Guarantees: functions that cannot score one gold answer, and a verifier of ours that no gold answer satisfies, are
refused.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from driftproof.errors import VerifierError
from driftproof.types import Prompt, Verdict
from driftproof.verify.pool import VerifierPool
from driftproof.verify.protocol import Item, Verifier

PROMPTS = 4
"""Prompts that are tried, at equal distances."""
WRITINGS: tuple[str, ...] = ("{}", "\\boxed{{{}}}", "#### {}", "<answer>{}</answer>", "<answer>\\boxed{{{}}}</answer>")
"""Ways to write an answer, tried in this order until one is worth more than a wrong answer in the same writing."""
MADE_UP = ("The answer is 42.", "I do not know.")
"""Right and wrong answer where a prompt has none."""
SECONDS = 20.0
"""Time after which no further way is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A prompt, a right answer to it and a wrong one, with their rewards."""

    prompt: Prompt
    right: Item
    reward: Verdict
    wrong: Item
    wrong_reward: Verdict

    @property
    def scored(self) -> bool:
        """Whether the right answer could be scored."""
        return not self.reward.problem

    @property
    def tells(self) -> bool:
        """Whether the right answer is worth more than the wrong one."""
        return self.scored and _value(self.reward) > _value(self.wrong_reward)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A verifier's rewards for right and wrong answers to a few prompts."""

    verifier: str
    tried: tuple[Tried, ...]
    warnings: tuple[str, ...]
    """Sentences on what can be run and is hardly meant."""


def try_rewards(
    name: str, verifier: Verifier, prompts: Sequence[Prompt], gold: Callable[[Prompt], str], *, built_in: bool
) -> Trial:
    """Score right and wrong answers to `PROMPTS` of the prompts; `gold` is how a response writes the right one.

    A `built_in` verifier compares with the answer, so that the right one must get reward 1. VerifierError where the
    verifier cannot score, or does not.
    """
    chosen = [prompts[i * len(prompts) // PROMPTS] for i in range(min(PROMPTS, len(prompts)))]
    if len(prompts) < PROMPTS:
        chosen = list(prompts)
    answers = [(gold(prompt), _wrong(prompt, prompts, gold)) if gold(prompt).strip() else MADE_UP for prompt in chosen]
    best: tuple[Tried, ...] = ()
    since = time.monotonic()
    for writing in WRITINGS:
        tried = tuple(_try(verifier, chosen, [(writing.format(a), writing.format(b)) for a, b in answers]))
        best = max(best, tried, key=lambda each: (sum(t.tells for t in each), sum(t.scored for t in each), len(each)))
        if any(t.tells for t in tried) or time.monotonic() - since > SECONDS:
            break
    _refuse(name, best, built_in)
    return Trial(verifier=name, tried=best, warnings=tuple(_warnings(name, verifier, best)))


def _try(verifier: Verifier, prompts: Sequence[Prompt], texts: Sequence[tuple[str, str]]) -> Iterator[Tried]:
    items = [Item.of(prompt, text) for prompt, pair in zip(prompts, texts, strict=True) for text in pair]
    verdicts = verifier.score(items)
    for place, prompt in enumerate(prompts):
        right, wrong = 2 * place, 2 * place + 1
        yield Tried(
            prompt=prompt,
            right=items[right],
            reward=verdicts[right],
            wrong=items[wrong],
            wrong_reward=verdicts[wrong],
        )


def _wrong(prompt: Prompt, prompts: Sequence[Prompt], gold: Callable[[Prompt], str]) -> str:
    """The right answer to another prompt, or what is none to any."""
    right = gold(prompt)
    near = (prompts[(prompt.index + distance) % len(prompts)] for distance in range(1, min(len(prompts), 50)))
    return next((other for other in map(gold, near) if other.strip() not in ("", right.strip())), _changed(right))


def _changed(right: str) -> str:
    """Another answer than the right one: a digit more or less, or its negation."""
    start, digit, end = re.fullmatch(r"(.*?)(\d?)(\D*)", right, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{start}{(int(digit) + 1) % 10}{end}" if digit else f"not {right}"


def _refuse(name: str, tried: Sequence[Tried], built_in: bool) -> None:
    if not any(t.scored for t in tried):
        first = tried[0]
        raise VerifierError(
            f"verifier {name} gave no reward to the right answer of any of the {len(tried)} prompts that were tried. "
            f"The first: prompt {_short(first.prompt.text)}, answer "
            f"{_short(first.right.response)}: {first.reward.problem}; correct the verifier, or the data"
        )
    if built_in and not any(t.scored and t.reward.reward == 1 and not t.wrong_reward.problem for t in tried):
        first = tried[0]
        what = first.reward.problem or first.wrong_reward.problem or f"reward {first.reward.reward:g}"
        raise VerifierError(
            f"verifier {name} does not read the gold answers: of {len(tried)} that were tried it accepts none as an "
            f"answer to its own prompt. The first: prompt {_short(first.prompt.text)}, answer "
            f"{_short(first.right.response)}: {what}; choose another task.verifier, or correct the answers"
        )


def _warnings(name: str, verifier: Verifier, tried: Sequence[Tried]) -> Iterator[str]:
    if failed := [t for t in tried if not t.scored]:
        yield (
            f"verifier {name} gave no reward to the right answers of {len(failed)} of {len(tried)} prompts that were "
            f"tried, like {_short(failed[0].right.response)}: {failed[0].reward.problem}"
        )
    elif broken := [t for t in tried if t.wrong_reward.problem]:
        yield (
            f"verifier {name} could not score the wrong answers to {len(broken)} of {len(tried)} prompts that were "
            f"tried, like {_short(broken[0].wrong.response)}: {broken[0].wrong_reward.problem}"
        )
    if not any(t.tells for t in tried) and not failed and all(t.prompt.answer.strip() for t in tried):
        yield f"verifier {name} gives right answers no more than wrong ones, in {len(WRITINGS)} ways to write them"
    negative = [t for t in tried if not t.wrong_reward.problem and _value(t.wrong_reward) < 0]
    if negative and isinstance(verifier, VerifierPool) and verifier.broken_reward == 0:
        least = min(_value(t.wrong_reward) for t in negative)
        yield (
            f"a wrong answer gets {least:g}, a response that breaks the verifier 0, which is more; set "
            f"verify.on_timeout = {least:g}, so that breaking it does not pay"
        )
    if _compared(verifier, tried):
        yield (
            f"the rewards of {name} depend on the responses beside it, and here every response is scored alone; set "
            "verify.together = true to have all responses to a prompt scored at once"
        )


def _compared(verifier: Verifier, tried: Sequence[Tried]) -> bool:
    """Whether responses that are scored alone would get other rewards beside others."""
    if not isinstance(verifier, VerifierPool) or not verifier.compares or verifier.together:
        return False
    pairs = [replace(item, group=place) for place, t in enumerate(tried) for item in (t.right, t.wrong)]
    alone = [verdict.reward for t in tried for verdict in (t.reward, t.wrong_reward)]
    return [verdict.reward for verdict in verifier.score_together(pairs)] != alone


def _value(verdict: Verdict) -> float:
    return float("-inf") if verdict.reward is None else verdict.reward


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}")
