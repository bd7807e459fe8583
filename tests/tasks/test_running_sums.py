"""Running totals."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.errors import TaskError
from driftproof.tasks import Task, running_sums
from tests.tasks.validate import validate


def terms_of(text: str) -> list[int]:
    return [int(term) for term in text.removesuffix("=").split("+")]


def counts(task: Task) -> Counter[int]:
    """How many prompts there are of each number of terms."""
    return Counter(len(terms_of(prompt.text)) for prompt in [*task.train, *task.heldout])


@given(st.integers(2, 6), st.integers(0, 4), st.sampled_from([1, 2, 18]), st.integers(0, 99), st.integers(0, 2**32))
@settings(max_examples=4, deadline=None)
def test_answers_are_running_totals_and_the_splits_are_disjoint(
    least: int, more: int, digits: int, heldout: int, seed: int
) -> None:
    task = running_sums(least_terms=least, most_terms=least + more, digits=digits, heldout=heldout, seed=seed)
    assert len(task.heldout) == heldout
    assert len({prompt.text for prompt in [*task.train, *task.heldout]}) == len(task.train) + heldout
    assert len(task.train) + heldout <= 50_000
    for split in (task.train, task.heldout):
        assert [prompt.index for prompt in split] == list(range(len(split)))
    for prompt in [*task.train[:50], *task.heldout]:
        terms = terms_of(prompt.text)
        assert prompt.text == "+".join(map(str, terms)) + "="
        assert prompt.answer == " ".join(str(sum(terms[: i + 1])) for i in range(len(terms)))
        assert max(terms) < 10**digits


def test_numbers_of_terms_share_the_prompts_where_there_are_enough() -> None:
    assert counts(running_sums()) == {2: 100, 3: 1000, 4: 10_000, 5: 10_000, 6: 10_000}
    assert counts(running_sums(least_terms=3, most_terms=7, digits=2)) == dict.fromkeys(range(3, 8), 10_000)
    assert counts(running_sums(least_terms=9, most_terms=9)) == {9: 50_000}


def test_all_prompts_where_there_are_few() -> None:
    task = running_sums(most_terms=2, heldout=10)
    every = {f"{a}+{b}=" for a in range(10) for b in range(10)}
    assert {prompt.text for prompt in [*task.train, *task.heldout]} == every


def test_the_verifier_takes_the_answers() -> None:
    validate(running_sums())


def test_the_seed_decides() -> None:
    assert running_sums(seed=3) == running_sums(seed=3)
    assert running_sums(seed=3).heldout != running_sums(seed=4).heldout
    # The same everywhere.
    assert [prompt.text for prompt in running_sums(seed=3).train[:3]] == ["0+9+7+8+9=", "3+9+0+3=", "8+1+2="]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"least_terms": 1}, "least_terms is 1 and most_terms 6; they must be between 2 and 100"),
        ({"least_terms": 7}, "least_terms is 7 and most_terms 6; .* least_terms at most most_terms"),
        ({"most_terms": 101}, "most_terms 101; they must be between 2 and 100"),
        ({"digits": 0}, "digits is 0; it must be between 1 and 18"),
        ({"digits": 19}, "digits is 19"),
        ({"most_terms": 2, "heldout": 100}, "heldout is 100 of 100 prompts; it must be between 0 and 99"),
        ({"heldout": -1}, "heldout is -1"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        running_sums(**fields)
