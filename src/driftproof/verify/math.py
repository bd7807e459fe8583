r"""Mathematical equality through Math-Verify: `\frac{1}{2}`, `0.5` and `1/2` are one answer.

Four verifiers, which differ in where they look for the final answer: `boxed` in the last complete `\boxed{}`, `hashes`
behind the last `####`, `number` at the last number, and `math` wherever the response says it. docs/answers.md says what
counts as equal, `driftproof.verify.answers` how. Only to be used through the process pool: an answer can still make
Math-Verify compute for long, and the pool's time limit is the only one.
"""

from functools import lru_cache

try:
    from driftproof.verify.answers.expressions import equal_expressions
except ImportError as error:
    raise ImportError(f"Math-Verify is missing ({error}); install it: pip install 'driftproof[math]'") from error

from driftproof.tasks.answers import last_number, tail
from driftproof.verify.answers import extract
from driftproof.verify.answers.equality import equal
from driftproof.verify.answers.forms import Form, Group
from driftproof.verify.answers.reading import read
from driftproof.verify.answers.spelling import as_latex

_LONGEST_ANSWER = 2_000
"""Characters; a longer answer is not the gold one, unless it is the same text."""


def math(text: str, answer: str) -> float:
    r"""1.0 where the final answer of `text` is mathematically equal to `answer`, else 0.0.

    The answer is what the last `\boxed{}`, `####` or statement ("the answer is ...") says, without any of them the last
    expression. ValueError where `answer`, the gold one, cannot be read.
    """
    gold = _gold(answer)
    return _any_equal(extract.answers(text, _parts(gold)), answer, gold)


def boxed(text: str, answer: str) -> float:
    r"""Like `math`, but an answer outside `\boxed{}` does not count."""
    gold = _gold(answer)
    return _any_equal(extract.boxed(text, _parts(gold)), answer, gold)


def hashes(text: str, answer: str) -> float:
    """Like `math`, but an answer that does not follow `####` does not count."""
    return _any_equal(extract.hashed(text), answer, _gold(answer))


def number(text: str, answer: str) -> float:
    """Like `math`, but the answer is the last number, wherever it stands."""
    found = last_number(as_latex(tail(text)))
    return _any_equal([found.replace("$", "")] if found else [], answer, _gold(answer))


def _any_equal(readings: list[str], answer: str, gold: Form) -> float:
    return float(any(_equal(reading, answer, gold) for reading in readings))


def _equal(found: str, answer: str, gold: Form) -> bool:
    if found.strip() == answer.strip():
        return True
    form = read(found) if len(found) <= _LONGEST_ANSWER else None
    return form is not None and equal(gold, form, equal_expressions)


def _parts(gold: Form) -> int:
    return len(gold.items) if isinstance(gold, Group) and gold.opening in ("", "{") else 1


@lru_cache(maxsize=1024)
def _gold(answer: str) -> Form:
    gold = read(answer)
    if gold is None:
        raise ValueError(f"the answer {answer!r} cannot be read as mathematics")
    return gold
