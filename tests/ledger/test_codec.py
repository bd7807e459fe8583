import sqlite3

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from driftproof.ledger.codec import content_checksum, read_group, to_row
from driftproof.ledger.schema import CONTENT, SCHEMA
from driftproof.types import FinishReason, Group
from tests.groups import make_group


@st.composite
def any_group(draw: st.DrawFn) -> Group:
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    total, size = sum(lengths), len(lengths)
    token = st.integers(0, 2**31 - 1)
    problems = draw(st.one_of(st.just(()), st.lists(st.text(), min_size=size, max_size=size).map(tuple)))
    rewards = [
        np.nan
        if problems and problems[i] and draw(st.booleans())
        else draw(st.floats(allow_nan=False, allow_infinity=False))
        for i in range(size)
    ]
    # Of several sequences per response, the last response has all that are left.
    responses = draw(st.integers(1, size))
    sequence_of = draw(st.one_of(st.none(), st.just(np.minimum(np.arange(size), responses - 1).astype(np.int32))))
    size = size if sequence_of is None else responses
    rewards, problems = rewards[:size], problems[:size]
    mask = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=total, max_size=total).map(np.array)))
    trained = None if mask is None else mask.astype(bool)
    written = total if trained is None else int(trained.sum())
    logprobs = st.lists(st.floats(-(2.0**40), 0, width=32), min_size=written, max_size=written)
    facts = st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.text()))
    return Group(
        prompt_index=draw(st.integers(0, 2**40)),
        prompt_tokens=np.array(draw(st.lists(token, min_size=1, max_size=4)), np.int32),
        response_tokens=np.array(draw(st.lists(token, min_size=total, max_size=total)), np.int32),
        response_lengths=np.array(lengths, np.int32),
        rewards=np.array(rewards, np.float64),
        finish_reasons=tuple(draw(st.sampled_from(FinishReason)) for _ in range(size)),
        problems=problems if any(problems) else (),
        behavior_logprobs=draw(st.one_of(st.none(), logprobs.map(lambda values: np.array(values, np.float32)))),
        retokenized=draw(st.booleans()),
        trained=trained,
        sequence_of=sequence_of,
        facts=draw(st.one_of(st.none(), facts)),
    )


@given(any_group())
def test_a_group_comes_back_from_its_row_as_it_was(group: Group):
    database = sqlite3.connect(":memory:")
    database.executescript(SCHEMA)
    row = to_row(group)
    database.execute(f"INSERT INTO contents VALUES (0, {', '.join('?' * len(row))})", row)
    stored = database.execute(f"SELECT {', '.join(CONTENT)} FROM contents").fetchone()
    database.close()
    found = read_group(group.prompt_index, stored, content_checksum(row))
    for name in Group.__dataclass_fields__:
        ours, theirs = getattr(found, name), getattr(group, name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs
            assert type(ours) is type(theirs)


def test_the_checksum_of_a_plain_group_is_what_it_was_in_format_2():
    group = make_group([1, 2], [[3], [4, 5]], [1.0, 0.5])
    assert content_checksum(to_row(group)) == 4096992414
