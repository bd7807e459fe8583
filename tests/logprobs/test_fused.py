"""Gradients of whole responses chunk by chunk, against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.logprobs import Head, TokenValues, head_gradients

from .problems import Problem, assert_same, differentiated, finished, problem, problems


@given(problems, st.integers(1, 40))
def test_chunks_of_responses_equal_the_reference(of: Problem, tokens_of_a_block: int):
    """Responses longer than a block are computed twice, the others once."""
    found = finished(of, variant="chunked", budget_bytes=tokens_of_a_block * len(of.weight_VH) * 8)
    assert_same(found, differentiated(of, variant="reference"), tolerance=1e-12)


@given(problems)
def test_the_reference_variant_is_one_chunk_and_the_same(of: Problem):
    assert_same(finished(of, variant="reference"), differentiated(of, variant="reference"), tolerance=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounded_inputs_give_the_exact_result_within_their_rounding(dtype: torch.dtype):
    of = problem((30, 20, 40), hidden=16, vocabulary=300).to(dtype)
    exact = differentiated(of.to(torch.float64), variant="reference")
    found = finished(of, variant="chunked", budget_bytes=35 * 300 * dtype.itemsize)
    assert found["hidden"].dtype == found["weight"].dtype == found["bias"].dtype == dtype
    assert_same(found, exact, tolerance=max(1e-5, 8 * torch.finfo(dtype).eps))


def chunks(lengths: tuple[int, ...], tokens_of_a_block: int) -> list[tuple[int, int]]:
    of, found = problem(lengths), []

    def token_gradients(scored: TokenValues, responses: slice, tokens: slice) -> TokenValues:
        found.append((responses.start, responses.stop))
        return TokenValues(logprobs_N=torch.zeros_like(scored.logprobs_N))

    head_gradients(
        of.hidden_NH,
        of.head(),
        of.targets_N,
        lengths,
        token_gradients,
        variant="chunked",
        budget_bytes=tokens_of_a_block * 11 * 8,
    )
    return found


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((2, 2, 2, 2), [(0, 2), (2, 4)]),
        ((5, 1, 1), [(0, 1), (1, 3)]),
        ((1, 9, 1), [(0, 1), (1, 2), (2, 3)]),
        ((0, 4, 0, 0), [(0, 4)]),
        ((0, 0), [(0, 2)]),
        ((0, 9), [(0, 1), (1, 2)]),
        ((), []),
    ],
)
def test_a_chunk_is_as_many_responses_as_fit_a_block(lengths: tuple[int, ...], expected: list[tuple[int, int]]):
    assert chunks(lengths, tokens_of_a_block=4) == expected


def test_the_loss_may_depend_on_the_logprobs():
    """-log of a response's mean probability: each token's weight is known only once all of them are."""
    of = problem((3, 5, 2), entropy=False)
    hidden, head = of.hidden_NH.clone().requires_grad_(), of.head()
    logits = (hidden @ head.weight_VH.T + head.bias_V) / of.temperature
    logprobs = logits.log_softmax(-1).gather(1, of.targets_N[:, None])[:, 0]
    sum(-response.exp().mean().log() for response in logprobs.split(of.lengths)).backward()

    def token_gradients(scored: TokenValues, responses: slice, tokens: slice) -> TokenValues:
        with torch.enable_grad():
            leaf = scored.logprobs_N.requires_grad_()
            loss = sum(-response.exp().mean().log() for response in leaf.split(of.lengths[responses]))
        (gradient,) = torch.autograd.grad(loss, leaf)
        return TokenValues(logprobs_N=gradient)

    for tokens_of_a_block in (1, 4, 100):
        found = head_gradients(
            of.hidden_NH,
            of.head(),
            of.targets_N,
            of.lengths,
            token_gradients,
            variant="chunked",
            budget_bytes=tokens_of_a_block * 11 * 8,
        )
        torch.testing.assert_close(found.hidden_NH, hidden.grad)
        torch.testing.assert_close(found.weight_VH, head.weight_VH.grad)
        torch.testing.assert_close(found.bias_V, head.bias_V.grad)


@pytest.mark.parametrize("variant", ["reference", "chunked"])
def test_bad_lengths_and_bad_answers_are_refused(variant: str):
    hidden, targets = torch.ones(3, 2), torch.tensor([0, 1, 2])
    head = Head(weight_VH=torch.ones(5, 2))

    def attempt(lengths: list[int], answer: TokenValues) -> None:
        head_gradients(hidden, head, targets, lengths, lambda *_: answer, variant=variant)

    good = TokenValues(logprobs_N=torch.ones(3))
    attempt([1, 2], good)
    with pytest.raises(ValueError, match="lengths sum to 2, the least 1, of 3 tokens"):
        attempt([1, 1], good)
    with pytest.raises(ValueError, match="the least -1"):
        attempt([4, -1], good)
    with pytest.raises(ValueError, match=r"gradients of shape \[2\] for log-probs of shape \[3\]"):
        attempt([1, 2], TokenValues(logprobs_N=torch.ones(2)))
    with pytest.raises(ValueError, match="ask for it with want_entropy=True"):
        attempt([1, 2], TokenValues(logprobs_N=torch.ones(3), entropy_N=torch.ones(3)))
