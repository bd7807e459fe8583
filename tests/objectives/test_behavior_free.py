import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from driftproof.objectives import ObjectiveError, Responses, build

from .steps import Step, evaluate, make_step, steps

ASYMPO = build("asympo", floor=0.0)


def padded(logprobs: list[list[float]], advantages: list[float]) -> tuple[torch.Tensor, Responses]:
    """A batch of rows padded with NaN, and its leaf."""
    width = max(map(len, logprobs))
    leaf = torch.tensor([row + [math.nan] * (width - len(row)) for row in logprobs], dtype=torch.float64)
    leaf.requires_grad_()
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in logprobs])
    return leaf, Responses.from_padded(leaf, mask, torch.tensor(advantages, dtype=torch.float64))


def test_naive_is_the_mean_of_advantage_times_mean_nll():
    leaf, batch = padded([[-1.0, -3.0], [-0.5]], [2.0, -1.0])
    output = build("naive")(batch)
    assert output.loss.item() == (2.0 * 2.0 - 1.0 * 0.5) / 2
    output.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[-0.5, -0.5], [0.5, 0.0]]


@given(steps(shortest=1))
def test_asympo_weighs_a_token_by_advantage_over_total_nll(step: Step):
    _, gradient, _ = evaluate(step, ASYMPO)
    expected = [
        torch.full_like(logprobs, (advantage / (step.size * -logprobs.sum())).item())
        for logprobs, advantage in zip(step.logprobs, step.advantages_R, strict=True)
    ]
    torch.testing.assert_close(gradient, -torch.cat(expected), rtol=1e-12, atol=0)


@given(steps(shortest=1))
def test_asympo_is_balanced_in_every_group(step: Step):
    leaves = step.leaves()
    for group in step.group_R.unique():
        numbers = torch.flatten(torch.nonzero(step.group_R == group)).tolist()
        assert abs(ASYMPO(step.part(leaves, numbers)).loss.item()) < 1e-12
        for sign in (1, -1):
            one_side = [n for n in numbers if sign * step.advantages_R[n] > 0]
            if one_side:
                loss = ASYMPO(step.part(leaves, one_side)).loss * step.size
                torch.testing.assert_close(loss, step.advantages_R[one_side].sum(), rtol=1e-12, atol=1e-12)


def test_naive_is_not_balanced():
    step = make_step([3, 3], [1.0, 0.0], [0, 0])
    assert abs(evaluate(step, build("naive"))[0].item()) > 0.01


@given(steps(shortest=1))
def test_asympo_has_the_gradient_of_advantage_times_log_nll(step: Step):
    def log_objective(*logprobs: torch.Tensor) -> torch.Tensor:
        nll_R = torch.stack([-values.mean() for values in logprobs])
        return (step.advantages_R * nll_R.log()).sum() / step.size

    leaves = step.leaves()
    log_objective(*leaves).backward()
    expected = torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None])
    torch.testing.assert_close(evaluate(step, ASYMPO)[1], expected, rtol=1e-10, atol=1e-14)


def test_gradients_agree_with_finite_differences():
    step = make_step([1, 4, 2, 3], [1.0, 0.0, 0.1, 1.0], [0, 0, 1, 1])
    log_nll = (step.advantages_R * step.nll_R().log()).sum() / step.size
    for name, value in (("naive", None), ("spo", None), ("asympo", log_nll)):
        objective = build(name, **({"floor": 0.0} if name == "asympo" else {}))
        _, gradient, _ = evaluate(step, objective)
        position = 0
        for number, logprobs in enumerate(step.logprobs):
            for token in range(len(logprobs)):
                slope = []
                for sign in (1, -1):
                    moved = [values.clone() for values in step.logprobs]
                    moved[number][token] += sign * 1e-6
                    if value is None:
                        slope.append(sign * objective(step.whole(moved)).loss)
                    else:
                        nll_R = torch.stack([-values.mean() for values in moved])
                        slope.append(sign * (step.advantages_R * nll_R.log()).sum() / step.size)
                torch.testing.assert_close(sum(slope) / 2e-6, gradient[position], rtol=1e-6, atol=1e-8)
                position += 1


@given(st.floats(-8, 8), st.integers(2, 30), st.sampled_from([1.0, -1.0, 0.3]))
def test_asympo_never_pushes_the_logits_harder_than_the_advantage(sharpness: float, vocabulary: int, advantage: float):
    """|dL/dz| summed over tokens is at most sqrt(2) |A| / R, however sure the policy is."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(6, vocabulary, dtype=torch.float64, generator=generator) * 2**sharpness
    logits.requires_grad_()
    logprobs = logits.log_softmax(-1).amax(-1)
    # Beyond this the mean NLL itself is a rounding error.
    assume(-logprobs.mean().item() > 1e-8)
    batch = Responses.from_padded(logprobs[None], torch.ones(1, 6), torch.tensor([advantage]))
    ASYMPO(batch).loss.backward()
    assert logits.grad is not None
    assert logits.grad.norm(dim=-1).sum().item() <= math.sqrt(2) * abs(advantage) * (1 + 1e-6)


@given(steps())
def test_spo_lies_between_naive_and_positives_alone(step: Step):
    naive, spo, positives = (evaluate(step, build(name, **fields)) for name, fields in NEIGHBOURS)
    torch.testing.assert_close(spo[:2], naive[:2], rtol=0, atol=0)
    only = Step(step.logprobs, step.behavior, step.advantages_R.clamp(min=0), step.group_R)
    torch.testing.assert_close(positives[:2], evaluate(only, build("naive"))[:2], rtol=0, atol=0)


NEIGHBOURS = [("naive", {}), ("spo", {"alpha": 1.0}), ("spo", {"alpha": 0.0})]


def test_spo_scales_negatives_by_alpha():
    leaf, batch = padded([[-2.0], [-4.0]], [0.5, -0.5])
    output = build("spo")(batch)
    assert output.loss.item() == pytest.approx((0.5 * 2 - 0.2 * 0.5 * 4) / 2)
    output.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.flatten().tolist() == pytest.approx([-0.25, 0.05])


@given(steps(shortest=1), st.floats(1e-4, 5.0))
def test_the_floor_bounds_the_weight_and_is_reported(step: Step, floor: float):
    _, gradient, metrics = evaluate(step, build("asympo", floor=floor))
    nll_R = step.nll_R()
    weight_R = -step.advantages_R / step.size / nll_R.clamp(min=floor)
    expected = [
        (weight / len(values)).expand(len(values)) for weight, values in zip(weight_R, step.logprobs, strict=True)
    ]
    torch.testing.assert_close(gradient, torch.cat(expected), rtol=1e-12, atol=0)
    assert metrics["floored_share"].item() == pytest.approx((nll_R < floor).sum().item() / step.size)


@given(steps(shortest=1), st.floats(0.001, 0.4), st.floats(0.5, 0.999))
def test_stable_asympo_is_equations_44_to_46(step: Step, p_low: float, p_high: float):
    loss, gradient, metrics = evaluate(step, build("asympo", stable=True, floor=0.0, p_low=p_low, p_high=p_high))
    expected_loss, expected_gradient, high, low = 0.0, [], 0, 0
    for logprobs, advantage in zip(step.logprobs, step.advantages_R.tolist(), strict=True):
        values = logprobs.tolist()
        if advantage >= 0:
            clipped = [min(value, math.log(p_high)) for value in values]
            free = [value <= math.log(p_high) for value in values]
            high += len(free) - sum(free)
        else:
            clipped = [max(value, math.log(p_low)) for value in values]
            free = [value >= math.log(p_low) for value in values]
            low += len(free) - sum(free)
        nll = -sum(clipped) / len(clipped)
        expected_loss += advantage / step.size
        expected_gradient += [-advantage / step.size / len(values) / nll * f for f in free]
    assert loss.item() == pytest.approx(expected_loss, abs=1e-12)
    assert gradient.tolist() == pytest.approx(expected_gradient, rel=1e-10)
    assert metrics["clipped_high_share"].item() == pytest.approx(high / step.tokens)
    assert metrics["clipped_low_share"].item() == pytest.approx(low / step.tokens)


@pytest.mark.parametrize("floor", [0.0, 1e-2])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_certain_response_keeps_loss_and_gradient_finite(floor: float, advantage: float):
    leaf, batch = padded([[0.0, 0.0], [-1.0, -2.0]], [advantage, -advantage])
    output = build("asympo", floor=floor)(batch)
    output.loss.backward()
    assert leaf.grad is not None
    # Without a floor there is no scale to divide by: the response gets no weight.
    expected = 0.0 if floor == 0 else -advantage / 2 / 2 / floor
    assert leaf.grad[0].tolist() == [expected, expected]
    assert output.loss.item() == pytest.approx(-advantage / 2)
    assert output.metrics["floored_share"].item() == (0.5 if floor else 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"floor": -1.0}, "asympo: floor is -1.0; it must be a number from 0.0 to 10.0"),
        ({"floor": math.nan}, "floor is nan"),
        ({"floor": "off"}, "asympo: floor is 'off'; it must be a number from 0.0 to 10.0"),
        ({"floor": True}, "floor is True"),
        ({"stable": "False"}, "asympo: stable is 'False'; it must be true or false"),
        ({"p_high": 0.01}, "asympo: p_high is 0.01; it must be a number from 0.02 to 1.0"),
        ({"p_low": 1.5}, "p_low is 1.5"),
        ({"aggregation": "token-mean"}, "asympo: aggregation is 'token-mean'"),
    ],
)
def test_asympo_refuses_fields_that_make_no_sense(fields: dict[str, object], message: str):
    with pytest.raises(ObjectiveError) as caught:
        build("asympo", **fields)
    assert message in str(caught.value)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, "a lot"])
def test_spo_refuses_an_alpha_out_of_range(alpha: object):
    with pytest.raises(ObjectiveError, match=r"spo: alpha is .*; it must be a number from 0\.0 to 1\.0"):
        build("spo", alpha=alpha)
