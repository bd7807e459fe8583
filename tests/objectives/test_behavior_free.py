import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from driftproof.errors import ObjectiveError
from driftproof.objectives import Responses, build

from .steps import Step, a_step, evaluate, make_step, steps

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


def test_gpg_makes_up_for_groups_that_teach_nothing():
    # Groups of two: one teaches, one does not, in one a single reward of two is there.
    step = make_step([1, 2, 3, 1, 1, 1], [1.0, 0.0, 1.0, 1.0, 2.0, math.nan], [0, 0, 1, 1, 2, 2])
    naive = evaluate(step, build("naive", aggregation="token-mean"))
    for alpha, expected in (("valid-groups", 6 / 2), ("nonzero-rewards", 6 / 4), (0.25, 0.25), (0, 0.0)):
        found = evaluate(step, build("gpg", alpha=alpha))
        torch.testing.assert_close(found.gradient, expected * naive.gradient, rtol=1e-12, atol=0)
        assert found.metrics["alpha"].item() == pytest.approx(expected)


def test_gpg_of_a_step_in_which_nothing_counts_scales_by_one():
    step = make_step([1, 2], [0.0, 0.0], [0, 0])
    for alpha in ("valid-groups", "nonzero-rewards"):
        assert evaluate(step, build("gpg", alpha=alpha)).metrics["alpha"].item() == 1


@pytest.mark.parametrize(
    ("alpha", "missing"),
    [("valid-groups", "total_valid_responses"), ("nonzero-rewards", r"total_nonzero_rewards \(or rewards_R of")],
)
def test_gpg_says_which_count_it_lacks(alpha: str, missing: str):
    step = a_step()
    batch = replace(step.whole(step.leaves()), total_valid_responses=None, total_nonzero_rewards=None)
    with pytest.raises(ObjectiveError, match=f"gpg: alpha '{alpha}' needs {missing}"):
        build("gpg", alpha=alpha)(batch)


def test_asymre_teaches_where_all_rewards_are_equal_but_not_where_one_is_missing():
    step = make_step([2, 2, 1], [1.0, 1.0, math.nan], [0, 0, 0])
    weights = -evaluate(step, build("asymre")).gradient[0] * 3
    assert weights.tolist() == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.0])
    batch = replace(step.whole(step.leaves()), rewards_R=None)
    assert build("asymre")(batch).loss.item() != build("asymre")(step.whole(step.leaves())).loss.item()


@given(steps(shortest=1))
def test_asympo_weighs_a_token_by_advantage_over_total_nll(step: Step):
    expected = [
        -response.advantage / (step.size * -sum(response.logprobs))
        for response in step.written()
        for _ in response.logprobs
    ]
    assert evaluate(step, ASYMPO).gradient[0].tolist() == pytest.approx(expected, rel=1e-12)


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
    assert abs(evaluate(step, ASYMPO).loss.item()) < 1e-12
    assert abs(evaluate(step, build("naive")).loss.item()) > 0.01


@given(steps(shortest=1))
def test_asympo_has_the_gradient_of_advantage_times_log_nll(step: Step):
    logprobs_N = step.leaves()["logprobs"]
    ((step.advantages_R * step.nll_R(logprobs_N).log()).sum() / step.size).backward()
    torch.testing.assert_close(evaluate(step, ASYMPO).gradient[0], logprobs_N.grad, rtol=1e-10, atol=1e-14)


def test_asympo_agrees_with_finite_differences_of_advantage_times_log_nll():
    step = make_step([1, 4, 2, 3], [1.0, 0.0, 0.1, 1.0], [0, 0, 1, 1])
    slopes = evaluate(step, ASYMPO).gradient[0]
    for token in range(step.tokens):
        ends = []
        for move in (1e-6, -1e-6):
            moved_N = step.channels["logprobs"].clone()
            moved_N[token] += move
            ends.append((step.advantages_R * step.nll_R(moved_N).log()).sum() / step.size)
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-6, slopes[token], rtol=1e-6, atol=1e-8)


@given(
    st.floats(-8, 8), st.integers(2, 30), st.integers(1, 6), st.sampled_from([1.0, -1.0, 0.3]), st.integers(0, 2**31)
)
def test_asympo_never_pushes_the_logits_harder_than_the_advantage(
    sharpness: float, vocabulary: int, length: int, advantage: float, seed: int
):
    """|dL/dz| summed over tokens is at most 2 |A| in L1 and sqrt(2) |A| in L2, however sure or wrong the policy is."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(length, vocabulary, dtype=torch.float64, generator=generator) * 2**sharpness
    logits.requires_grad_()
    chosen = torch.randint(vocabulary, (length, 1), generator=generator)
    logprobs = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
    # Beyond this the mean NLL itself is a rounding error.
    assume(-logprobs.mean().item() > 1e-8)
    for objective in (ASYMPO, build("asympo"), build("asympo", stable=True)):
        batch = Responses.from_padded(logprobs[None], torch.ones(1, length), torch.tensor([advantage]))
        (slopes,) = torch.autograd.grad(objective(batch).loss, logits, retain_graph=True)
        assert slopes.abs().sum().item() <= 2 * abs(advantage) * (1 + 1e-6)
        assert slopes.norm(dim=-1).sum().item() <= math.sqrt(2) * abs(advantage) * (1 + 1e-6)


def test_the_bound_on_the_logits_is_reached_by_sure_responses():
    """Dividing by less than the mean NLL would break it."""
    logits = torch.tensor([[12.0, 0.0]], dtype=torch.float64, requires_grad=True)
    logprobs = logits.log_softmax(-1)[:, 0]
    batch = Responses.from_padded(logprobs[None], torch.ones(1, 1), torch.tensor([1.0]))
    (slopes,) = torch.autograd.grad(ASYMPO(batch).loss, logits)
    assert slopes.abs().sum().item() == pytest.approx(2, rel=1e-4)
    assert slopes.norm().item() == pytest.approx(math.sqrt(2), rel=1e-4)


@given(steps(shortest=1), st.floats(1e-4, 5.0))
def test_the_floor_bounds_the_weight_and_is_reported(step: Step, floor: float):
    found = evaluate(step, build("asympo", floor=floor))
    nll_R = step.nll_R(step.channels["logprobs"])
    weight_R = -step.advantages_R / step.size / nll_R.clamp(min=floor) / step.lengths_R
    expected = weight_R.repeat_interleave(step.lengths_R)
    torch.testing.assert_close(found.gradient[0], expected, rtol=1e-12, atol=0)
    floored = step.lengths_R[nll_R < floor].sum().item() / step.tokens
    assert found.metrics["floored_share"].item() == pytest.approx(floored)


def test_empty_responses_are_not_counted_as_floored():
    step = make_step([0, 2], [1.0, 0.0], [0, 0])
    assert evaluate(step, build("asympo", floor=10.0)).metrics["floored_share"].item() == 1
    assert evaluate(step, build("asympo", floor=1e-12)).metrics["floored_share"].item() == 0


@given(steps(shortest=1), st.floats(0.001, 0.4), st.floats(0.5, 0.999))
def test_stable_asympo_counts_the_tokens_at_each_bound_and_stays_balanced(step: Step, p_low: float, p_high: float):
    found = evaluate(step, build("asympo", stable=True, floor=0.0, p_low=p_low, p_high=p_high))
    assert abs(found.loss.item()) < 1e-12
    responses = step.written()
    high = sum(logprob > math.log(p_high) for r in responses if r.advantage >= 0 for logprob in r.logprobs)
    low = sum(logprob < math.log(p_low) for r in responses if r.advantage < 0 for logprob in r.logprobs)
    assert found.metrics["clipped_high_share"].item() == pytest.approx(high / step.tokens)
    assert found.metrics["clipped_low_share"].item() == pytest.approx(low / step.tokens)


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
