import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.health import add_sums, health_metrics, health_sums
from driftproof.objectives import Responses, build


def make_batch(logprobs: list[list[float]], advantages: list[float]) -> Responses:
    lengths_R = torch.tensor([len(row) for row in logprobs], dtype=torch.int64)
    return Responses(
        logprobs_N=torch.tensor([value for row in logprobs for value in row], dtype=torch.float64),
        segment_N=torch.arange(len(logprobs)).repeat_interleave(lengths_R),
        lengths_R=lengths_R,
        advantages_R=torch.tensor(advantages, dtype=torch.float64),
        group_R=torch.zeros_like(lengths_R),
        total_responses=len(logprobs),
        total_tokens=int(lengths_R.sum()),
    )


def test_the_table_by_hand():
    batch = make_batch([[-1.0, -3.0], [-0.5], [-4.0], [-0.25]], [1.0, 0.5, -2.0, 0.0])
    entropy_N = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0])
    assert health_metrics(health_sums(batch, entropy_N)) == pytest.approx(
        {
            "health/nll": (2 + 0.5 + 4 + 0.25) / 4,
            "health/positive_nll": (1.0 * 2 + 0.5 * 0.5) / 1.5,
            "health/negative_nll": 4.0,
            "health/scale_imbalance": 4.0 / 1.5,
            "health/balance": (1.0 * 2 + 0.5 * 0.5 - 2.0 * 4) / 4,
            "health/positive_share": 0.5,
            "health/negative_share": 0.25,
            # The most certain response has no advantage, so that it has no weight either.
            "health/largest_inverse_nll": 2.0,
            "health/entropy": 2.0,
        }
    )


responses = st.lists(
    st.tuples(st.lists(st.floats(-9, -1e-3), max_size=4), st.sampled_from([0.0, 1.0, -0.5])), min_size=1, max_size=8
)


@given(responses, st.data())
def test_sums_of_the_parts_are_those_of_the_whole(responses: list[tuple[list[float], float]], data: st.DataObject):
    cut = data.draw(st.integers(0, len(responses)))

    def sums(part: list[tuple[list[float], float]]) -> dict[str, torch.Tensor]:
        batch = make_batch([logprobs for logprobs, _ in part], [advantage for _, advantage in part])
        return health_sums(batch, -batch.logprobs_N)

    whole, parts = (
        health_metrics(sums(responses)),
        health_metrics(add_sums(sums(responses[:cut]), sums(responses[cut:]))),
    )
    assert parts == pytest.approx(whole)


@given(responses)
def test_balance_is_the_naive_loss(responses: list[tuple[list[float], float]]):
    batch = make_batch([logprobs for logprobs, _ in responses], [advantage for _, advantage in responses])
    metrics = health_metrics(health_sums(batch))
    assert metrics["health/balance"] == pytest.approx(build("naive")(batch).loss.item())


def test_figures_without_data_are_left_out():
    metrics = health_metrics(health_sums(make_batch([[-1.0]], [1.0])))
    assert metrics["health/positive_nll"] == 1.0
    assert not {"health/negative_nll", "health/scale_imbalance", "health/entropy"} & set(metrics)
    certain = health_metrics(health_sums(make_batch([[0.0], [-1.0]], [1.0, -1.0])))
    assert "health/scale_imbalance" not in certain
    assert all(math.isfinite(value) for value in certain.values())
