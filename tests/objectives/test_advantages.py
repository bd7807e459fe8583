import math
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.objectives.advantages import group_advantages, token_advantages
from driftproof.types import Baseline

BASELINES: tuple[Baseline, ...] = ("mean", "mean-std", "leave-one-out")
rewards = st.one_of(st.just(math.nan), st.floats(-100, 100), st.sampled_from([0.0, 1.0]))
groups = st.lists(st.lists(rewards, min_size=1, max_size=5), max_size=4)


def advantages(groups: list[list[float]], baseline: Baseline, order: list[int] | None = None) -> list[list[float]]:
    """Advantages group by group; the responses are given in `order`."""
    flat = torch.tensor([reward for group in groups for reward in group], dtype=torch.float64)
    group_R = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(g) for g in groups], dtype=torch.int64))
    places = torch.tensor(range(len(flat)) if order is None else order, dtype=torch.int64)
    found = torch.empty_like(flat)
    found[places] = group_advantages(flat[places], group_R[places], baseline)
    return [list(part) for part in (found[group_R == g].tolist() for g in range(len(groups)))]


def by_hand(group: list[float], baseline: Baseline) -> list[float]:
    given_ = [reward for reward in group if not math.isnan(reward)]
    result = []
    for position, reward in enumerate(group):
        others = [r for i, r in enumerate(group) if i != position and not math.isnan(r)]
        if math.isnan(reward) or len(given_) < 2:
            result.append(0.0)
        elif baseline == "mean":
            result.append(reward - mean(given_))
        elif baseline == "mean-std":
            result.append((reward - mean(given_)) / (stdev(given_) + 1e-6))
        else:
            result.append(reward - mean(others))
    return result


@pytest.mark.parametrize("baseline", BASELINES)
@given(groups=groups, data=st.data())
def test_advantages_are_those_by_hand_in_any_order(baseline: Baseline, groups: list[list[float]], data: st.DataObject):
    order = data.draw(st.permutations(range(sum(map(len, groups)))))
    for found, group in zip(advantages(groups, baseline, order), groups, strict=True):
        assert found == pytest.approx(by_hand(group, baseline), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("baseline", BASELINES)
@given(st.floats(-1e6, 1e6), st.integers(1, 7))
def test_equal_rewards_have_exactly_no_advantage(baseline: Baseline, reward: float, size: int):
    assert advantages([[reward] * size + [math.nan]], baseline) == [[0.0] * (size + 1)]


@pytest.mark.parametrize("baseline", BASELINES)
@given(groups)
def test_advantages_of_a_group_sum_to_zero(baseline: Baseline, groups: list[list[float]]):
    for found in advantages(groups, baseline):
        assert sum(found) == pytest.approx(0, abs=1e-9)


def test_the_dtype_of_the_rewards_is_kept():
    for dtype in (torch.float32, torch.float64):
        assert group_advantages(torch.tensor([1.0, 0.0], dtype=dtype), torch.zeros(2, dtype=torch.int64)).dtype == dtype


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match="unknown baseline 'median'; valid: mean, mean-std, leave-one-out"):
        advantages([[1.0, 0.0]], "median")  # type: ignore[arg-type]


def gae_by_hand(reward: float, values: list[float], discount: float, gae_lambda: float) -> list[float]:
    """From the last token to the first."""
    advantages: list[float] = []
    for position in reversed(range(len(values))):
        last = position == len(values) - 1
        step = (reward if last else discount * values[position + 1]) - values[position]
        advantages.append(step + (0.0 if last else discount * gae_lambda * advantages[-1]))
    return advantages[::-1]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(-5, 5)), max_size=5),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_token_advantages_are_those_of_a_plain_loop(
    responses: list[tuple[int, float]], discount: float, gae_lambda: float, seed: int
):
    lengths = [length for length, _ in responses]
    values_N = torch.randn(sum(lengths), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = token_advantages(
        torch.tensor([reward for _, reward in responses], dtype=torch.float64),
        values_N,
        torch.tensor(lengths, dtype=torch.int64),
        discount=discount,
        gae_lambda=gae_lambda,
    )
    expected = []
    for (_, reward), values in zip(responses, values_N.split(lengths), strict=True):
        expected += gae_by_hand(reward, values.tolist(), discount, gae_lambda)
    assert found.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_the_ends_of_lambda_are_reward_minus_value_and_the_one_step_error():
    values_N = torch.tensor([0.5, -1.0, 0.25, 2.0, 7.0])
    lengths_R, rewards_R = torch.tensor([3, 0, 1, 1]), torch.tensor([1.0, 9.0, 0.0, -1.0])
    whole = token_advantages(rewards_R, values_N, lengths_R, discount=1.0, gae_lambda=1.0)
    assert whole.tolist() == [0.5, 2.0, 0.75, -2.0, -8.0]
    one_step = token_advantages(rewards_R, values_N, lengths_R, discount=1.0, gae_lambda=0.0)
    assert one_step.tolist() == [-1.5, 1.25, 0.75, -2.0, -8.0]
