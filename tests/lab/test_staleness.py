"""Where the data of a step comes from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.lab.staleness import ExactLag, Periodic, Replay, Staleness

RULE = (
    st.builds(ExactLag, lag=st.integers(0, 70))
    | st.builds(Periodic, every=st.integers(1, 70))
    | st.builds(
        Replay,
        ages=st.lists(st.lists(st.integers(0, 70), min_size=1, max_size=5).map(tuple), min_size=1, max_size=5).map(
            tuple
        ),
    )
)


def oldest(rule: Staleness) -> int:
    """The largest age that a rule allows."""
    match rule:
        case ExactLag(lag=lag):
            return lag
        case Periodic(every=every):
            return every - 1
        case Replay(ages=ages):
            return max(map(max, ages))


def sources(rule: Staleness, steps: int) -> list[int]:
    """With one group a step."""
    return [rule.sources(step, 1)[0] for step in range(1, steps + 1)]


def test_exact_lag() -> None:
    assert sources(ExactLag(lag=2), 5) == [0, 0, 0, 1, 2]
    assert sources(ExactLag(lag=0), 5) == [0, 1, 2, 3, 4]


def test_periodic() -> None:
    assert sources(Periodic(every=3), 7) == [0, 0, 0, 3, 3, 3, 6]
    assert sources(Periodic(every=1), 5) == [0, 1, 2, 3, 4]


def test_replay_gives_each_group_its_age_and_begins_again() -> None:
    rule = Replay(ages=((0, 0), (1, 0), (2, 1)))
    assert [rule.sources(step, 2) for step in range(1, 7)] == [[0, 0], [0, 1], [0, 1], [3, 3], [3, 4], [3, 4]]
    # A batch of another size deals the ages out in turn.
    assert rule.sources(5, 3) == [3, 4, 3]


@given(RULE, st.integers(1, 300), st.integers(1, 6))
def test_ages_are_never_negative_and_never_above_the_oldest(rule: Staleness, step: int, groups: int) -> None:
    found = rule.sources(step, groups)
    assert len(found) == groups
    assert all(0 <= source < step and step - 1 - source <= oldest(rule) for source in found)


@given(st.integers(1, 70))
def test_every_age_of_a_period_occurs(every: int) -> None:
    ages = {step - 1 - Periodic(every=every).sources(step, 1)[0] for step in range(1, 2 * every + 1)}
    assert ages == set(range(every))


@pytest.mark.parametrize("rule", [ExactLag(lag=7), Periodic(every=8), Replay(ages=((0,), (7, 2)))])
def test_the_oldest_age_occurs(rule: Staleness) -> None:
    assert max(step - 1 - s for step in range(1, 50) for s in rule.sources(step, 4)) == oldest(rule) == 7
