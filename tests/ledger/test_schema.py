import sqlite3

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from driftproof.ledger.schema import CONTENT, SCHEMA, from_row, to_row
from driftproof.types import FinishReason, Group


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
    logprobs = st.lists(st.floats(-(2.0**40), 0, width=32), min_size=total, max_size=total)
    return Group(
        prompt_index=draw(st.integers(0, 2**40)),
        prompt_tokens=np.array(draw(st.lists(token, min_size=1, max_size=4)), np.int32),
        response_tokens=np.array(draw(st.lists(token, min_size=total, max_size=total)), np.int32),
        response_lengths=np.array(lengths, np.int32),
        rewards=np.array(rewards, np.float64),
        finish_reasons=tuple(draw(st.sampled_from(FinishReason)) for _ in lengths),
        problems=problems if any(problems) else (),
        behavior_logprobs=draw(st.one_of(st.none(), logprobs.map(lambda values: np.array(values, np.float32)))),
        retokenized=draw(st.booleans()),
    )


@given(any_group())
def test_a_group_comes_back_from_its_row_as_it_was(group: Group):
    database = sqlite3.connect(":memory:")
    database.executescript(SCHEMA)
    holes = ", ".join("?" * len(CONTENT.split(", ")))
    database.execute(
        f"INSERT INTO groups (prompt_index, state, worker, deadline, dispatched_step, {CONTENT}) "
        f"VALUES ({group.prompt_index}, 'ready', '', 0, 0, {holes})",
        to_row(group),
    )
    found = from_row(group.prompt_index, database.execute(f"SELECT {CONTENT} FROM groups").fetchone())
    database.close()
    for name in Group.__dataclass_fields__:
        ours, theirs = getattr(found, name), getattr(group, name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs
            assert type(ours) is type(theirs)
