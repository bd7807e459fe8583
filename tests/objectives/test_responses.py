import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from driftproof.logprobs import Head, token_logprobs
from driftproof.objectives import Responses, build
from driftproof.objectives.responses import TOKEN_CHANNELS, count_nonzero_rewards, count_valid_responses

from .steps import CHANNELS, Step, a_step, steps

LOGPROBS = torch.tensor([[-1.0, -2.0, -0.5], [-0.1, -0.2, -0.3]])
MASK = torch.tensor([[1, 1, 0], [0, 0, 1]])
ADVANTAGES = torch.tensor([1.0, -1.0])


def test_from_padded_packs_the_tokens_under_the_mask():
    batch = Responses.from_padded(LOGPROBS, MASK, ADVANTAGES, LOGPROBS - 1)
    torch.testing.assert_close(batch.logprobs_N, torch.tensor([-1.0, -2.0, -0.3]))
    assert batch.behavior_logprobs_N is not None
    torch.testing.assert_close(batch.behavior_logprobs_N, torch.tensor([-2.0, -3.0, -1.3]))
    assert batch.segment_N.tolist() == [0, 0, 1]
    assert batch.lengths_R.tolist() == [2, 1]
    assert batch.group_R.tolist() == [0, 0]
    assert (batch.total_responses, batch.total_tokens) == (2, 3)
    assert batch.mean_per_response(batch.logprobs_N).tolist() == pytest.approx([-1.5, -0.3])
    assert batch.per_token(ADVANTAGES).tolist() == [1.0, 1.0, -1.0]
    assert batch.share_of_tokens(torch.tensor([True, False, False])).item() == pytest.approx(1 / 3)


def test_every_channel_lands_in_its_own_place():
    """In the dtype of the log-probs; with its gradient where it is of the current policy."""
    channels = {
        name: (-torch.full((2, 3), float(place))).double().requires_grad_() for place, name in enumerate(CHANNELS)
    }
    assert set(TOKEN_CHANNELS) == set(CHANNELS) - {"logprobs"}
    logprobs_RT = channels.pop("logprobs")
    batch = Responses.from_padded(logprobs_RT.float(), MASK, ADVANTAGES.double(), **channels)
    for place, name in enumerate(CHANNELS):
        packed_N = getattr(batch, f"{name}_N")
        assert packed_N.tolist() == [-place] * 3
        assert packed_N.dtype == torch.float32
        assert packed_N.requires_grad == (name in ("logprobs", "entropy", "values"))
    assert batch.advantages_R.dtype == torch.float32


def test_the_counts_are_of_the_whole_step_where_they_are_given():
    rewards = torch.tensor([0.5, math.nan])
    whole = Responses.from_padded(LOGPROBS, MASK, ADVANTAGES, rewards_R=rewards)
    assert (whole.total_valid_responses, whole.total_nonzero_rewards) == (2, 1)
    assert Responses.from_padded(LOGPROBS, MASK, ADVANTAGES).total_nonzero_rewards is None
    part = Responses.from_padded(
        LOGPROBS, MASK, ADVANTAGES, rewards_R=rewards, total_responses=8, total_tokens=30, total_valid_responses=6,
        total_nonzero_rewards=5,
    )  # fmt: skip
    counts = (part.total_responses, part.total_tokens, part.total_valid_responses, part.total_nonzero_rewards)
    assert counts == (8, 30, 6, 5)
    # A part cannot know what the rest of its step holds.
    unknown = Responses.from_padded(LOGPROBS, MASK, ADVANTAGES, rewards_R=rewards, total_responses=8, total_tokens=30)
    assert (unknown.total_valid_responses, unknown.total_nonzero_rewards) == (None, None)


@given(steps())
@settings(max_examples=20)
def test_responses_are_counted(step: Step):
    assert count_valid_responses(step.advantages_R, step.group_R) == step.valid_responses
    assert count_nonzero_rewards(step.rewards_R) == step.nonzero_rewards


def test_what_is_summed_over_a_response_has_no_gradient_and_is_zero_without_tokens():
    step = a_step()
    leaves = step.leaves()
    batch = step.whole(leaves)
    assert not batch.sum_per_response(batch.logprobs_N).requires_grad
    assert not batch.mean_per_response(batch.logprobs_N).requires_grad
    expected = [sum(response.logprobs) for response in step.written()]
    assert batch.sum_per_response(batch.logprobs_N).tolist() == pytest.approx(expected)
    assert not batch.mean_per_response(batch.logprobs_N)[step.lengths_R == 0].any()
    doubled = replace(batch, sum_over_ranks=lambda sums_R: 2 * sums_R)
    assert doubled.sum_per_response(batch.logprobs_N).tolist() == pytest.approx([2 * x for x in expected])


@pytest.mark.parametrize("bad", [-math.inf, math.nan, math.inf, 0.5])
@pytest.mark.parametrize("channel", ["log-probs", "behavior_logprobs", "proximal_logprobs", "reference_logprobs"])
def test_what_cannot_be_the_logprob_of_a_sampled_token_is_refused(bad: float, channel: str):
    def build_from(broken: torch.Tensor) -> Responses:
        if channel == "log-probs":
            return Responses.from_padded(broken, MASK, ADVANTAGES)
        return Responses.from_padded(LOGPROBS, MASK, ADVANTAGES, **{channel: broken})

    broken = LOGPROBS.clone()
    broken[1, 2] = bad
    with pytest.raises(ValueError, match=rf"1 {channel} under the mask .* \(first: {bad}\)"):
        build_from(broken)
    build_from(torch.where(MASK.bool(), LOGPROBS, bad))


@pytest.mark.parametrize("bad", [-math.inf, math.nan, math.inf])
@pytest.mark.parametrize("channel", ["entropy", "values", "old_values"])
def test_other_channels_must_be_finite(bad: float, channel: str):
    broken = LOGPROBS.abs()
    broken[1, 2] = bad
    with pytest.raises(ValueError, match=f"{channel} must be finite under the mask; got {bad}"):
        Responses.from_padded(LOGPROBS, MASK, ADVANTAGES, **{channel: broken})
    outside = torch.where(MASK.bool(), LOGPROBS.abs(), bad)
    Responses.from_padded(LOGPROBS, MASK, ADVANTAGES, **{channel: outside})


def test_a_rounding_error_above_zero_is_a_log_prob():
    logprobs = torch.tensor([[1e-4]], requires_grad=True)
    output = build("asympo")(Responses.from_padded(logprobs, torch.ones(1, 1), ADVANTAGES[:1]))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(-100)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype: torch.dtype):
    with pytest.raises(ValueError, match=f"log-probs are {dtype}; half precision costs"):
        Responses.from_padded(LOGPROBS.to(dtype), MASK, ADVANTAGES)


def test_half_precision_hidden_states_train_through_float32_log_probs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 16, generator=generator).bfloat16().requires_grad_()
    head = torch.randn(11, 16, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(11, (6,), generator=generator)
    logprobs_N = token_logprobs(hidden, Head(weight_VH=head), targets).logprobs_N
    batch = Responses.from_padded(logprobs_N.view(2, 3), torch.ones(2, 3), ADVANTAGES)
    build("asympo")(batch).loss.backward()
    for leaf in (hidden, head):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.bfloat16
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.any()


def test_advantages_must_be_finite():
    with pytest.raises(ValueError, match="advantages must be finite; got nan"):
        Responses.from_padded(LOGPROBS, MASK, torch.tensor([math.nan, 1.0]))


@pytest.mark.parametrize(
    ("logprobs", "mask", "advantages", "behavior", "message"),
    [
        (LOGPROBS[:1], MASK, ADVANTAGES, None, r"got \(1, 3\), \(2, 3\), \(2,\)"),
        (LOGPROBS, MASK, ADVANTAGES[:1], None, r"got \(2, 3\), \(2, 3\), \(1,\)"),
        (LOGPROBS, MASK, ADVANTAGES[:, None], None, "advantages"),
        (LOGPROBS, MASK, ADVANTAGES, LOGPROBS[:, :2], r"behavior_logprobs has shape \(2, 2\), the mask has \(2, 3\)"),
    ],
)
def test_shapes_that_disagree_are_refused(logprobs, mask, advantages, behavior, message):
    with pytest.raises(ValueError, match=message):
        Responses.from_padded(logprobs, mask, advantages, behavior)


@pytest.mark.parametrize("totals", [{"total_responses": 8}, {"total_tokens": 30}])
def test_one_total_without_the_other_is_refused(totals: dict[str, int]):
    with pytest.raises(ValueError, match="give both for a part of an optimizer step, and neither for a whole one"):
        Responses.from_padded(LOGPROBS, MASK, ADVANTAGES, **totals)


def test_an_infinite_reward_is_refused():
    with pytest.raises(ValueError, match="rewards must be finite, or NaN where a response has none"):
        Responses.from_padded(LOGPROBS, MASK, ADVANTAGES, rewards_R=torch.tensor([math.inf, 1.0]))


@pytest.mark.parametrize(
    "totals", [{"total_responses": 1, "total_tokens": 30}, {"total_responses": 8, "total_tokens": 2}]
)
def test_totals_below_the_part_are_refused(totals: dict[str, int]):
    with pytest.raises(ValueError, match="of the whole optimizer step and cannot be below this part's"):
        Responses.from_padded(LOGPROBS, MASK, ADVANTAGES, **totals)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("advantages_R", "12 lengths, 11 advantages, 12 groups and 12 rewards; each response needs one of each"),
        ("group_R", "12 lengths, 12 advantages, 11 groups and 12 rewards"),
        ("rewards_R", "12 lengths, 12 advantages, 12 groups and 11 rewards"),
        ("values_N", r"values has shape \(27,\), the log-probs have \(28,\)"),
    ],
)
def test_each_response_and_token_needs_one_of_each(field: str, message: str):
    step = a_step()
    batch = step.whole(step.leaves())
    with pytest.raises(ValueError, match=message):
        replace(batch, **{field: getattr(batch, field)[1:]})
