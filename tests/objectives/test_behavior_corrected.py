import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.objectives import ObjectiveError, Responses, build
from driftproof.types import Channel

from .steps import Step, evaluate, steps

AGGREGATIONS = [
    {"aggregation": "seq-mean-token-mean"},
    {"aggregation": "token-mean"},
    {"aggregation": "seq-mean-token-sum-norm", "horizon": 7},
]


def one_token(ratio: float, advantage: float, **fields: float) -> tuple[float, float, dict[str, float]]:
    """Loss, its derivative in log pi, and the metrics of one token of the given ratio."""
    logprob = torch.tensor([[-30.0 + math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    behavior = torch.full_like(logprob, -30.0).detach()
    batch = Responses.from_padded(logprob, torch.ones(1, 1), torch.tensor([advantage]), behavior)
    output = build("grpo", clip_low=0.2, clip_high=0.3, **fields)(batch)
    output.loss.backward()
    assert logprob.grad is not None
    return output.loss.item(), logprob.grad.item(), {name: value.item() for name, value in output.metrics.items()}


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # A good token is pushed until the upper clip, and always helped back up.
        (0.5, 1.0, -0.5, -0.5),
        (1.0, 2.0, -2.0, -2.0),
        (1.29, 1.0, -1.29, -1.29),
        (1.31, 1.0, -1.3, 0.0),
        (9.0, 1.0, -1.3, 0.0),
        # A bad token is pushed until the lower clip, always helped back down, and not beyond the dual clip.
        (0.5, -1.0, 0.8, 0.0),
        (0.79, -1.0, 0.8, 0.0),
        (0.81, -1.0, 0.81, 0.81),
        (2.9, -2.0, 5.8, 5.8),
        (3.1, -2.0, 6.0, 0.0),
        (0.5, 0.0, 0.0, 0.0),
        (5.0, 0.0, 0.0, 0.0),
    ],
)
def test_grpo_clips_in_exactly_its_regions(ratio: float, advantage: float, loss: float, slope: float):
    assert one_token(ratio, advantage)[:2] == pytest.approx((loss, slope), abs=1e-12)


def test_grpo_without_dual_clip_has_no_upper_bound_for_bad_tokens():
    assert one_token(50.0, -1.0, dual_clip=math.inf)[:2] == pytest.approx((50.0, 50.0))
    assert one_token(50.0, 0.0, dual_clip=math.inf)[:2] == (0.0, 0.0)
    assert one_token(50.0, 1.0, dual_clip=math.inf)[:2] == pytest.approx((-1.3, 0.0))


def test_grpo_counts_the_tokens_it_clips():
    assert one_token(1.5, 1.0)[2] == pytest.approx({"ratio_mean": 1.5, "clipped_high_share": 1, "clipped_low_share": 0})
    assert one_token(0.5, -1.0)[2] == pytest.approx(
        {"ratio_mean": 0.5, "clipped_high_share": 0, "clipped_low_share": 1}
    )
    assert one_token(1.5, -1.0)[2] == pytest.approx(
        {"ratio_mean": 1.5, "clipped_high_share": 0, "clipped_low_share": 0}
    )


def test_an_extreme_ratio_is_finite():
    leaf = torch.tensor([[-1.0, -900.0]], requires_grad=True)
    behavior = torch.tensor([[-900.0, -1.0]])
    for advantage in (1.0, -1.0):
        batch = Responses.from_padded(leaf, torch.ones(1, 2), torch.tensor([advantage]), behavior)
        output = build("grpo", dual_clip=math.inf)(batch)
        output.loss.backward()
        assert torch.isfinite(output.loss)
        assert torch.isfinite(output.metrics["ratio_mean"])
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


@given(steps(), st.sampled_from(AGGREGATIONS))
def test_on_policy_grpo_has_the_gradient_of_naive(step: Step, aggregation: dict[str, object]):
    on_policy = Step(step.logprobs, step.logprobs, step.advantages_R, step.group_R)
    grpo = evaluate(on_policy, build("grpo", **aggregation))
    naive = evaluate(on_policy, build("naive", **aggregation))
    torch.testing.assert_close(grpo[1], naive[1], rtol=1e-12, atol=1e-15)
    assert grpo[2]["clipped_high_share"] == grpo[2]["clipped_low_share"] == 0


def test_grpo_names_the_channel_it_lacks():
    objective = build("grpo")
    assert objective.needs == {Channel.BEHAVIOR_LOGPROBS}
    batch = Responses.from_padded(torch.full((1, 2), -1.0), torch.ones(1, 2), torch.zeros(1))
    with pytest.raises(ObjectiveError, match="needs behavior_logprobs"):
        objective(batch)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_low": 1.2}, "grpo: clip_low is 1.2; it must be a number from 0.0 to 1.0"),
        ({"clip_high": -0.1}, "grpo: clip_high is -0.1"),
        ({"dual_clip": 0.5}, "grpo: dual_clip is 0.5; it must be a number from 1.0 to inf"),
        ({"dual_clip": "off"}, "grpo: dual_clip is 'off'"),
    ],
)
def test_grpo_refuses_fields_out_of_range(fields: dict[str, object], message: str):
    with pytest.raises(ObjectiveError) as caught:
        build("grpo", **fields)
    assert message in str(caught.value)
