from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.learner.packing import MicroBatch, pack
from driftproof.learner.policy import Policy
from driftproof.types import Group
from tests.groups import make_group, random_groups

from .tiny import own_logprobs, tiny_model

tokens = st.integers(0, 999)
groups = st.lists(
    st.builds(
        make_group,
        st.lists(tokens, min_size=1, max_size=5),
        st.lists(st.lists(tokens, max_size=6), min_size=1, max_size=5),
    ),
    max_size=4,
)
budgets = st.integers(1, 60)
rows = st.integers(0, 30)


def flat_responses(groups: list[Group]) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of all responses, group by group."""
    return [(group.prompt_tokens.tolist(), response.tolist()) for group in groups for response in group.split()]


def seen_by(micro_batch: MicroBatch, place: int) -> tuple[list[int], list[int]]:
    """Token ids and position ids that the flattened position `place` attends to, in the order of position."""
    row, column = divmod(place, micro_batch.input_ids.shape[1])
    if micro_batch.attention_mask is None:
        visible = torch.arange(micro_batch.input_ids.shape[1]) <= column
    else:
        visible = micro_batch.attention_mask[row, 0, column]
    seen = zip(
        micro_batch.position_ids[row][visible].tolist(), micro_batch.input_ids[row][visible].tolist(), strict=True
    )
    ordered = sorted(seen)
    return [token for _, token in ordered], [position for position, _ in ordered]


@given(groups, budgets, rows, st.booleans())
def test_every_response_token_is_predicted_once_from_what_precedes_it(
    groups: list[Group], token_budget: int, row_tokens: int, share_prompts: bool
):
    responses = flat_responses(groups)
    micro_batches = pack(groups, token_budget=token_budget, row_tokens=row_tokens, share_prompts=share_prompts)
    found: list[int] = []
    for micro_batch in micro_batches:
        cursor = 0
        for number, length in zip(micro_batch.responses_R.tolist(), micro_batch.lengths, strict=True):
            prompt, response = responses[number]
            assert length == len(response)
            start = sum(len(earlier) for _, earlier in responses[:number])
            for position, token in enumerate(response):
                assert micro_batch.targets_N[cursor] == token
                assert micro_batch.tokens_N[cursor] == start + position
                context = prompt + response[:position]
                assert seen_by(micro_batch, int(micro_batch.predict_N[cursor])) == (context, list(range(len(context))))
                cursor += 1
        assert cursor == len(micro_batch.targets_N) == len(micro_batch.tokens_N) == len(micro_batch.predict_N)
        found += micro_batch.responses_R.tolist()
    assert sorted(found) == list(range(len(responses)))


@given(groups, budgets, rows, st.booleans())
def test_budgets_are_kept(groups: list[Group], token_budget: int, row_tokens: int, share_prompts: bool):
    for micro_batch in pack(groups, token_budget=token_budget, row_tokens=row_tokens, share_prompts=share_prompts):
        count, width = micro_batch.input_ids.shape
        assert micro_batch.positions == count * width
        assert count == 1 or micro_batch.positions <= token_budget
        assert micro_batch.position_ids.max() < 64
        if len(micro_batch.lengths) > count:
            assert share_prompts
            assert micro_batch.attention_mask is not None
        else:
            assert micro_batch.attention_mask is None


def test_a_prompt_is_encoded_once_for_the_responses_that_fit():
    group = make_group([1, 2, 3], [[4, 5], [6, 7, 8], [9], [10] * 9])
    (micro_batch,) = pack([group], token_budget=100, row_tokens=6)
    assert micro_batch.input_ids.tolist() == [
        [1, 2, 3, 10, 10, 10, 10, 10, 10, 10, 10],
        [1, 2, 3, 4, 6, 7, 0, 0, 0, 0, 0],
    ]
    assert micro_batch.responses_R.tolist() == [3, 0, 1, 2]


def test_a_micro_batch_is_at_most_a_quarter_padding():
    groups = [make_group([1], [[2] * length]) for length in (8, 2, 8, 4)]
    micro_batches = pack(groups, token_budget=100)
    assert [tuple(micro_batch.input_ids.shape) for micro_batch in micro_batches] == [(3, 8), (1, 2)]
    assert [micro_batch.responses_R.tolist() for micro_batch in micro_batches] == [[0, 2, 3], [1]]


def test_a_long_response_is_alone_in_its_micro_batch():
    groups = [make_group([1], [[2, 3]]), make_group([1], [[7] * 30, [8]]), make_group([1], [[4, 5]])]
    micro_batches = pack(groups, token_budget=10, row_tokens=10)
    assert [micro_batch.responses_R.tolist() for micro_batch in micro_batches] == [[1], [0, 3, 2]]


def test_no_groups_are_no_micro_batches():
    assert pack([], token_budget=10) == []


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma2", "gpt2"])
@pytest.mark.parametrize(
    "packing", [{}, {"row_tokens": 0}, {"token_budget": 1}, {"row_tokens": 12, "token_budget": 30}]
)
def test_logprobs_and_gradients_are_those_of_the_model_itself(architecture: str, packing: dict[str, Any]):
    """However it is packed: shared prompts, one response a row, one row a micro-batch."""
    groups = [
        *random_groups(1),
        make_group([7], [[3], [], [4, 4]]),
        make_group([5], [[]]),
        # Together longer than the model's last position.
        make_group([1, 2], [[3, 4, 5, 6, 7, 8]] * 4),
    ]
    responses = flat_responses(groups)
    model = tiny_model(architecture)
    policy = Policy(model)
    assert policy.can_share_prompts(groups) == (architecture != "gemma2")
    weights_N = torch.linspace(-1, 1, sum(len(response) for _, response in responses))

    own_N = torch.cat([own_logprobs(model, prompt, response) for prompt, response in responses])
    (own_N * weights_N).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    ours_N = torch.empty_like(weights_N)
    for micro_batch in pack(
        groups, share_prompts=policy.can_share_prompts(groups), **({"token_budget": 999} | packing)
    ):
        scored_N = policy.score(micro_batch).logprobs_N
        ours_N[micro_batch.tokens_N] = scored_N.detach()
        (scored_N * weights_N[micro_batch.tokens_N]).sum().backward()
    torch.testing.assert_close(ours_N, own_N, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=3e-5)
