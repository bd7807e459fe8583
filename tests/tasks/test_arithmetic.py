"""Column addition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.errors import TaskError
from driftproof.tasks import arithmetic
from tests.tasks.validate import validate


@given(st.sampled_from([1, 2, 3, 9, 18]), st.integers(0, 99), st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_prompts_are_sums_and_the_splits_are_disjoint(digits: int, heldout: int, seed: int) -> None:
    task = arithmetic(digits=digits, heldout=heldout, seed=seed)
    assert len(task.heldout) == heldout
    assert len(task.train) + heldout == min(10 ** (2 * digits), 50_000)
    assert len({prompt.text for prompt in [*task.train, *task.heldout]}) == len(task.train) + heldout
    for split in (task.train, task.heldout):
        assert [prompt.index for prompt in split] == list(range(len(split)))
    for prompt in [*task.train[:50], *task.heldout]:
        a, b = map(int, prompt.text.removesuffix("=").split("+"))
        assert prompt.text == f"{a}+{b}="
        assert prompt.answer == str(a + b)
        assert max(a, b) < 10**digits


def test_two_digits_hold_every_pair() -> None:
    task = arithmetic()
    assert {p.text for p in [*task.train, *task.heldout]} == {f"{a}+{b}=" for a in range(100) for b in range(100)}
    validate(task).check()


def test_the_seed_decides() -> None:
    assert arithmetic(seed=3) == arithmetic(seed=3)
    assert arithmetic(seed=3).heldout != arithmetic(seed=4).heldout
    drawn = arithmetic(digits=4, seed=3)
    assert drawn == arithmetic(digits=4, seed=3)
    assert drawn.heldout != arithmetic(digits=4, seed=4).heldout


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"digits": 0}, "digits is 0; it must be between 1 and 18"),
        ({"digits": 19}, "digits is 19"),
        ({"digits": 1, "heldout": 100}, "heldout is 100 of 100 prompts; it must be between 0 and 99"),
        ({"heldout": -1}, "heldout is -1"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        arithmetic(**fields)
