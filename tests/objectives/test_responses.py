import math

import pytest
import torch

from driftproof.objectives import Responses

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


@pytest.mark.parametrize("bad", [-math.inf, math.nan, math.inf, 0.5])
@pytest.mark.parametrize("channel", ["log-probs", "behavior_logprobs"])
def test_what_cannot_be_the_logprob_of_a_sampled_token_is_refused(bad: float, channel: str):
    broken = LOGPROBS.clone()
    broken[1, 2] = bad
    pair = (broken, LOGPROBS) if channel == "log-probs" else (LOGPROBS, broken)
    with pytest.raises(ValueError, match=rf"1 {channel} under the mask .* \(first: {bad}\)"):
        Responses.from_padded(pair[0], MASK, ADVANTAGES, pair[1])
    outside = torch.where(MASK.bool(), LOGPROBS, bad)
    Responses.from_padded(outside, MASK, ADVANTAGES, outside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype: torch.dtype):
    with pytest.raises(ValueError, match=f"log-probs are {dtype}; half precision costs"):
        Responses.from_padded(LOGPROBS.to(dtype), MASK, ADVANTAGES)


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


@pytest.mark.parametrize("totals", [{"total_responses": 1}, {"total_tokens": 2}])
def test_totals_below_the_part_are_refused(totals: dict[str, int]):
    with pytest.raises(ValueError, match="of the whole optimizer step and cannot be below this part's"):
        Responses.from_padded(LOGPROBS, MASK, ADVANTAGES, **totals)


def test_each_response_needs_its_advantage():
    with pytest.raises(ValueError, match="2 lengths, 1 advantages and 2 groups"):
        Responses(
            logprobs_N=LOGPROBS[0],
            segment_N=torch.tensor([0, 0, 1]),
            lengths_R=torch.tensor([2, 1]),
            advantages_R=ADVANTAGES[:1],
            group_R=torch.zeros(2),
            total_responses=2,
            total_tokens=3,
        )
