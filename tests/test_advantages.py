import math
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.advantages import Baseline, group_advantages

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
