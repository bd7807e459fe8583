import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.objectives import Responses, build
from driftproof.objectives.clipped import capped_second_moment

from .steps import Result, Step, assert_same, evaluate, one_token, steps


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
@pytest.mark.parametrize("name", ["grpo", "dr-grpo"])
def test_grpo_clips_in_exactly_its_regions(name: str, ratio: float, advantage: float, loss: float, slope: float):
    horizon = {"horizon": 1} if name == "dr-grpo" else {}
    objective = build(name, clip_low=0.2, clip_high=0.3, **horizon)
    assert one_token(objective, ratio, advantage)[:2] == pytest.approx((loss, slope), abs=1e-12)


def test_grpo_without_dual_clip_has_no_upper_bound_for_bad_tokens():
    objective = build("grpo", clip_high=0.3, dual_clip=math.inf)
    assert one_token(objective, 50.0, -1.0)[:2] == pytest.approx((50.0, 50.0))
    assert one_token(objective, 50.0, 0.0)[:2] == (0.0, 0.0)
    assert one_token(objective, 50.0, 1.0)[:2] == pytest.approx((-1.3, 0.0))


CLIPPED = {
    "grpo": build("grpo"),
    "gspo": build("gspo", clip_low=0.2, clip_high=0.2),
    # Its cap is the budget's: one harmful token of (log 1.5)^2 = 0.16 is above 0.04, whose cap is 0.2.
    "m2po": build("m2po", least_low=1.0, least_high=1.0),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_the_tokens_that_the_clip_stops_are_counted(name: str):
    for ratio, advantage, high, low in ((1.5, 1.0, 1, 0), (0.5, -1.0, 0, 1), (1.5, -1.0, 0, 0), (0.5, 1.0, 0, 0)):
        metrics = one_token(CLIPPED[name], ratio, advantage)[2]
        assert (metrics["clipped_high_share"], metrics["clipped_low_share"]) == (high, low)
    assert one_token(CLIPPED[name], 1.5, 0.0)[2]["clipped_high_share"] == 0


@given(steps(longest=1))
@settings(max_examples=20)
def test_gspo_of_single_tokens_is_grpo(step: Step):
    gspo = evaluate(step, build("gspo", clip_low=0.2, clip_high=0.3))
    assert_same(gspo, evaluate(step, build("grpo", clip_low=0.2, clip_high=0.3, dual_clip=math.inf)))


@given(steps(shortest=1))
@settings(max_examples=20)
def test_gspo_has_the_gradient_of_the_sequence_ratio(step: Step):
    """Its equation as it stands in the paper, differentiated by autograd."""
    logprobs_N = step.leaves()["logprobs"]
    log_ratio_N = logprobs_N - step.channels["behavior_logprobs"]
    ratio_R = torch.stack([log_ratio_N[step.places(number)].mean().exp() for number in range(step.size)])
    clipped_R = ratio_R.clamp(1 - 3e-4, 1 + 4e-4)
    loss = -torch.minimum(ratio_R * step.advantages_R, clipped_R * step.advantages_R).mean()
    loss.backward()
    found = evaluate(step, build("gspo"))
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.gradient[0], logprobs_N.grad, rtol=1e-10, atol=1e-14)


def test_gspo_clips_a_response_as_a_whole_in_float32():
    """All tokens have the response's ratio to the last digit, however far their own ones are from it."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        apart = 5 * torch.randn(1, 32, generator=generator)
        leaf = (-30 + apart).requires_grad_()
        # The mean log-ratio is at the upper bound, up to rounding.
        behavior = (leaf.detach() - (apart - apart.mean() + math.log(1 + 4e-4))).detach()
        batch = Responses.from_padded(leaf, torch.ones(1, 32), torch.tensor([1.0]), behavior)
        output = build("gspo")(batch)
        output.loss.backward()
        assert output.metrics["clipped_high_share"].item() in (0, 1)
        assert leaf.grad is not None
        assert len(set(leaf.grad.flatten().tolist())) == 1


@given(st.lists(st.floats(0, 4), max_size=8), st.floats(0, 2))
def test_the_cap_brings_the_second_moment_to_its_budget(squares: list[float], budget: float):
    squares_M = torch.tensor(squares, dtype=torch.float64)
    cap = capped_second_moment(squares_M, budget)
    if not squares or squares_M.mean() <= budget:
        assert all(cap.item() >= square for square in squares)
    else:
        assert squares_M.clamp(max=cap.item()).mean().item() == pytest.approx(budget, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("ratios", "advantages", "cap"),
    [
        # Two harmful tokens: log ratios 0.1 and 1, so 0.01 + t^2 = 2 * 0.04.
        ([math.exp(0.1), math.e], [1.0, 1.0], math.sqrt(0.07)),
        # Both ends count alike; tokens that have moved back, or without an advantage, do not.
        ([math.exp(-0.1), math.e, 0.01, 50.0, 7.0], [-1.0, 1.0, 1.0, -1.0, 0.0], math.sqrt(0.07)),
        ([math.e], [1.0], 0.2),
        # Within the budget nothing is clipped.
        ([math.exp(0.19), 1.0, 0.01], [1.0, 1.0, 1.0], 0.19),
        ([0.01, 50.0], [1.0, -1.0], 0.0),
    ],
)
def test_m2po_finds_its_clip(ratios: list[float], advantages: list[float], cap: float):
    behavior = torch.full((len(ratios), 1), -10.0, dtype=torch.float64)
    leaf = (behavior + torch.tensor(ratios, dtype=torch.float64).log()[:, None]).requires_grad_()
    batch = Responses.from_padded(leaf, torch.ones(len(ratios), 1), torch.tensor(advantages), behavior)
    output = build("m2po", least_low=1.0, least_high=1.0)(batch)
    output.loss.backward()
    assert leaf.grad is not None
    for ratio, advantage, slope in zip(ratios, advantages, leaf.grad.flatten().tolist(), strict=True):
        stopped = advantage * math.log(ratio) > 0 and abs(math.log(ratio)) > cap + 1e-9
        assert slope == pytest.approx(0.0 if stopped else -ratio * advantage / len(ratios))
    harmful = [math.log(r) ** 2 for r, a in zip(ratios, advantages, strict=True) if a * math.log(r) > 0]
    assert output.metrics["second_moment"].item() == pytest.approx(sum(harmful) / max(len(harmful), 1))
    assert output.metrics["clip_high"].item() == pytest.approx(math.exp(cap))


def test_m2po_is_never_tighter_than_its_least_clip():
    objective = build("m2po", budget=0.0)
    for ratio, advantage, slope in ((1.49, 1.0, -1.49), (1.51, 1.0, 0.0), (0.71, -1.0, 0.71), (0.69, -1.0, 0.0)):
        assert one_token(objective, ratio, advantage)[1] == pytest.approx(slope)
    assert one_token(objective, 1.51, 1.0)[2]["clip_high"] == 1.5


@given(steps())
@settings(max_examples=20)
def test_m2po_with_an_infinite_budget_clips_nothing(step: Step):
    found = evaluate(step, build("m2po", budget=math.inf, least_low=1.0, least_high=1.0))
    free = build("m2po", budget=0.0, least_low=0.0, least_high=math.inf)
    plain = evaluate(step, free)
    assert_same(Result(found.loss, found.gradient, {}), Result(plain.loss, plain.gradient, {}))
    assert found.metrics["clipped_high_share"] == found.metrics["clipped_low_share"] == 0
    expected = [-response.advantage * ratio / step.tokens for response in step.written() for ratio in response.ratios]
    assert found.gradient[0].tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_furthest_token_within_the_budget_keeps_its_gradient(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        behavior = torch.full((1, 17), -5.0, dtype=dtype)
        leaf = (behavior + torch.rand(1, 17, dtype=dtype, generator=generator)).requires_grad_()
        batch = Responses.from_padded(leaf, torch.ones(1, 17), torch.tensor([1.0]), behavior)
        build("m2po", budget=math.inf)(batch).loss.backward()
        assert leaf.grad is not None
        assert (leaf.grad < 0).all()


def test_m2po_stops_the_furthest_tokens_alone():
    behavior = torch.full((1, 11), -5.0, dtype=torch.float64)
    leaf = (behavior + torch.linspace(0, 1, 11)).requires_grad_()
    batch = Responses.from_padded(leaf, torch.ones(1, 11), torch.tensor([1.0]), behavior)
    # The least clip of 1.5 leaves log ratios up to 0.4 alone, the cap of the budget up to 0.5.
    for budget, kept in ((0.0, 5), (0.2, 6), (1.0, 11)):
        output = build("m2po", budget=budget)(batch)
        (slopes,) = torch.autograd.grad(output.loss, leaf, retain_graph=True)
        assert (slopes != 0).flatten().tolist() == [True] * kept + [False] * (11 - kept)
        assert output.metrics["clipped_high_share"].item() == pytest.approx((11 - kept) / 11)
