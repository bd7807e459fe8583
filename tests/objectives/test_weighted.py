import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.objectives import Responses, build

from .steps import Result, Step, assert_same, evaluate, make_step, one_token, steps


@pytest.mark.parametrize("advantage", [1.0, -2.0])
@pytest.mark.parametrize(("ratio", "weight", "high", "low"), [(0.1, 0.5, 0, 1), (0.7, 0.7, 0, 0), (9.0, 4.0, 1, 0)])
def test_cispo_truncates_the_weight_and_drops_no_token(
    advantage: float, ratio: float, weight: float, high: int, low: int
):
    loss, slope, metrics = one_token(build("cispo", ratio_low=0.5, ratio_high=4.0), ratio, advantage)
    assert slope == pytest.approx(-weight * advantage)
    assert loss == pytest.approx(-weight * advantage * (-30 + math.log(ratio)))
    assert metrics == {"clipped_high_share": high, "clipped_low_share": low}


@given(steps())
@settings(max_examples=20)
def test_cispo_without_bounds_is_its_definition(step: Step):
    """-sg(rho) A log pi, whose gradient is that of -rho A."""
    leaves = step.leaves()
    ratio_N = (leaves["logprobs"] - step.channels["behavior_logprobs"]).exp()
    advantage_N = step.advantages_R.repeat_interleave(step.lengths_R)
    loss = -(ratio_N.detach() * advantage_N * leaves["logprobs"]).sum() / max(step.tokens, 1)
    (expected,) = torch.autograd.grad(-(ratio_N * advantage_N).sum() / max(step.tokens, 1), leaves["logprobs"])
    found = evaluate(step, build("cispo", ratio_high=math.inf))
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.gradient[0], expected, rtol=1e-12, atol=1e-14)
    assert found.metrics["clipped_high_share"] == found.metrics["clipped_low_share"] == 0


@pytest.mark.parametrize(
    ("mu", "pi", "advantage", "masked"),
    [
        (0.3, 0.46, 1.0, True),
        (0.3, 0.44, 1.0, False),
        (0.46, 0.3, 1.0, False),
        (0.46, 0.3, -1.0, True),
        (0.44, 0.3, -1.0, False),
        (0.3, 0.46, -1.0, False),
        # A large ratio of a rare token is a small move.
        (1e-6, 1e-2, 1.0, False),
    ],
)
def test_dppo_tv_masks_by_probability_and_direction(mu: float, pi: float, advantage: float, masked: bool):
    _, slope, metrics = one_token(build("dppo-tv", horizon=1), pi / mu, advantage, mu)
    assert slope == pytest.approx(0.0 if masked else -advantage * pi / mu)
    assert metrics == {
        "clipped_high_share": masked and advantage > 0,
        "clipped_low_share": masked and advantage < 0,
    }


@pytest.mark.parametrize(
    ("mu", "pi", "advantage", "masked"),
    [
        # KL(0.3, 0.46) = 0.0522..., KL(0.3, 0.45) = 0.0471...
        (0.3, 0.46, 1.0, True),
        (0.3, 0.45, 1.0, False),
        (0.3, 0.46, -1.0, False),
        # KL(0.46, 0.3) = 0.0557..., KL(0.44, 0.3) = 0.0433...
        (0.46, 0.3, -1.0, True),
        (0.44, 0.3, -1.0, False),
        (0.46, 0.3, 1.0, False),
        # KL(0.001, 0.2) = 0.217: 200 times the probability.
        (0.001, 0.2, 1.0, True),
        (0.9999, 0.7, -1.0, True),
        (1.0, 0.5, -1.0, True),
        (0.5, 1.0, 1.0, True),
        (1.0, 1.0, -1.0, False),
    ],
)
def test_dppo_kl_masks_by_divergence_and_direction(mu: float, pi: float, advantage: float, masked: bool):
    _, slope, metrics = one_token(build("dppo-kl", horizon=1), pi / mu, advantage, mu)
    assert slope == pytest.approx(0.0 if masked else -advantage * pi / mu)
    assert metrics == {
        "clipped_high_share": masked and advantage > 0,
        "clipped_low_share": masked and advantage < 0,
    }


@pytest.mark.parametrize("name", ["dppo-tv", "dppo-kl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dppo_masks_moves_to_and_from_a_probability_of_zero(name: str, dtype: torch.dtype):
    for new, old, advantage in ((-0.1, -900.0, 1.0), (-900.0, -0.1, -1.0)):
        leaf = torch.tensor([[new, -1.0]], dtype=dtype, requires_grad=True)
        behavior = torch.tensor([[old, -1.0]], dtype=dtype)
        batch = Responses.from_padded(leaf, torch.ones(1, 2), torch.tensor([advantage]), behavior)
        build(name, horizon=1)(batch).loss.backward()
        assert leaf.grad is not None
        assert leaf.grad.tolist() == [[0.0, -advantage]]


@pytest.mark.parametrize("name", ["dppo-tv", "dppo-kl"])
@given(mu=st.floats(1e-7, 1 - 1e-7), pi=st.floats(1e-7, 1 - 1e-7), size=st.floats(0.1, 3))
def test_dppo_never_masks_a_token_that_moves_back(name: str, mu: float, pi: float, size: float):
    """A good token below, or a bad one above, its probability when drawn keeps its whole gradient at any threshold."""
    advantage = -size if pi > mu else size
    _, slope, metrics = one_token(build(name, delta=0.0, horizon=1), pi / mu, advantage, mu)
    assert slope == pytest.approx(-advantage * pi / mu, rel=1e-9)
    assert not any(metrics.values())


@pytest.mark.parametrize("name", ["dppo-tv", "dppo-kl"])
def test_dppo_truncates_the_ratio_where_asked_to(name: str):
    assert one_token(build(name, horizon=1), 50.0, -1.0)[1] == pytest.approx(50.0)
    assert one_token(build(name, horizon=1, ratio_high=10.0), 50.0, -1.0)[1] == pytest.approx(10.0)
    assert one_token(build(name, horizon=1, ratio_high=10.0), 5.0, -1.0)[1] == pytest.approx(5.0)


def test_tokens_without_an_advantage_are_not_counted_as_masked():
    step = make_step([4, 3], [1.0, 1.0], [0, 0])
    moved = step.with_channels(behavior_logprobs=torch.full_like(step.channels["logprobs"], -1e-3))
    for name in ("dppo-tv", "dppo-kl"):
        assert not any(evaluate(moved, build(name, horizon=8)).metrics.values())


def test_topr_tapers_negatives_by_the_product_over_the_response():
    behavior = torch.full((2, 2), -3.0, dtype=torch.float64)
    log_ratios = torch.tensor([[2.0, 0.5], [0.5, 0.1]], dtype=torch.float64).log()
    for advantage in (-1.0, 1.0):
        leaf = (behavior + log_ratios).requires_grad_()
        batch = Responses.from_padded(leaf, torch.ones(2, 2), torch.tensor([advantage, advantage]), behavior)
        output = build("topr")(batch)
        output.loss.backward()
        assert leaf.grad is not None
        weights = [1.0, 1.0, 0.05, 0.05] if advantage < 0 else [1.0] * 4
        assert leaf.grad.flatten().tolist() == pytest.approx([-weight * advantage / 4 for weight in weights])
        assert output.metrics["clipped_high_share"] == 0


@pytest.mark.parametrize(("ratio", "weight", "high", "low"), [(0.3, 0.5, 0, 1), (0.9, 0.9, 0, 0), (9.0, 2.0, 1, 0)])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_topr_limits_the_weight_of_negatives_alone(level: str, ratio: float, weight: float, high: int, low: int):
    objective = build("topr", level=level, ratio_low=0.5, ratio_high=2.0)
    _, slope, metrics = one_token(objective, ratio, -1.0)
    assert slope == pytest.approx(weight)
    assert metrics == {"clipped_high_share": high, "clipped_low_share": low}
    _, slope, metrics = one_token(objective, ratio, 1.0)
    assert slope == -1.0
    assert not any(metrics.values())


@given(steps())
@settings(max_examples=20)
def test_the_positives_of_topr_are_those_of_rft(step: Step):
    positives = step.only([n for n in range(step.size) if step.advantages_R[n] >= 0])
    found, expected = evaluate(positives, build("topr")), evaluate(positives, build("rft"))
    assert_same(Result(found.loss, found.gradient, {}), expected)
