"""The recomputing variants against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.logprobs import Head, TokenValues, token_logprobs

from .problems import Problem, assert_same, differentiated, problem, problems


@given(problems, st.integers(1, 40))
def test_chunked_equals_the_reference(of: Problem, tokens_of_a_block: int):
    found = differentiated(of, variant="chunked", budget_bytes=tokens_of_a_block * len(of.weight_VH) * 8)
    assert_same(found, differentiated(of, variant="reference"), tolerance=1e-12)


def test_a_budget_below_one_token_is_one_token_a_block():
    of = problem()
    expected = differentiated(of, variant="reference")
    assert_same(differentiated(of, variant="chunked", budget_bytes=1), expected, tolerance=1e-12)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradients_are_those_of_finite_differences(softcap: float | None):
    of = problem((2, 2), vocabulary=6, hidden=3, softcap=softcap)
    leaves = [of.hidden_NH.requires_grad_(), of.weight_VH.requires_grad_(), of.bias_V.requires_grad_()]

    def outputs(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        head = Head(weight_VH=weight, bias_V=bias, temperature=0.7, softcap=softcap)
        found = token_logprobs(hidden, head, of.targets_N, want_entropy=True, variant="chunked", budget_bytes=6 * 8 * 3)
        return found.logprobs_N, found.entropy_N

    assert torch.autograd.gradcheck(outputs, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_rounded_inputs_give_the_exact_result_within_their_rounding(dtype: torch.dtype, softcap: float | None):
    """The logits, about 10 at most, are rounded once, and so are the gradients by them and the results."""
    of = problem((30, 20, 40), hidden=16, vocabulary=300, softcap=softcap).to(dtype)
    exact = differentiated(of.to(torch.float64), variant="reference")
    found = differentiated(of, variant="chunked", budget_bytes=25 * 300 * dtype.itemsize)
    assert found["logprobs"].dtype == found["entropy"].dtype == torch.float32
    assert found["hidden"].dtype == found["weight"].dtype == found["bias"].dtype == dtype
    # Four blocks: the weight's gradient is rounded four times.
    assert_same(found, exact, tolerance=max(1e-5, 8 * torch.finfo(dtype).eps))


def test_a_bfloat16_gradient_summed_over_many_blocks_stays_near():
    of = problem((100,), hidden=8, vocabulary=20).to(torch.bfloat16)
    exact = differentiated(of.to(torch.float64), variant="reference")
    for tokens_of_a_block, tolerance in ((100, 0.01), (1, 0.05)):
        found = differentiated(of, variant="chunked", budget_bytes=tokens_of_a_block * 20 * 2)
        for name in ("weight", "hidden"):
            error = (found[name].double() - exact[name]).norm() / exact[name].norm()
            assert error < tolerance, (name, tokens_of_a_block)


@pytest.mark.parametrize("variant", ["reference", "chunked"])
def test_float32_weights_under_autocast_get_float32_gradients(variant: str):
    """The product is in bfloat16; its sums over blocks are not rounded to it."""
    of = problem((60,), hidden=8, vocabulary=20).to(torch.float32)
    exact = differentiated(of, variant="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = differentiated(of, variant=variant, budget_bytes=3 * 20 * 2)
    assert found["weight"].dtype == found["hidden"].dtype == torch.float32
    assert not torch.equal(found["logprobs"], exact["logprobs"])
    assert_same(found, exact, tolerance=0.03)


def test_autocast_leaves_float64_alone():
    of = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = differentiated(of, variant="chunked")
    assert_same(found, differentiated(of, variant="reference"), tolerance=1e-12)


def test_bfloat16_hidden_states_take_a_float32_head():
    of = problem((60,), hidden=8, vocabulary=20).to(torch.float32)
    exact = differentiated(of, variant="reference")
    hidden, head = of.hidden_NH.bfloat16().requires_grad_(), of.head()
    found = token_logprobs(hidden, head, of.targets_N, variant="chunked", budget_bytes=7 * 20 * 2)
    found.logprobs_N.sum().backward()
    assert (hidden.grad.dtype, head.weight_VH.grad.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found.logprobs_N.detach(), exact["logprobs"], rtol=0, atol=0.1)


@pytest.mark.parametrize("variant", ["reference", "chunked"])
def test_a_tied_embedding_gets_both_gradients(variant: str):
    of = problem()
    embedding = of.weight_VH.clone().requires_grad_()
    inputs = torch.arange(len(of.targets_N))
    found = token_logprobs(embedding[inputs].tanh(), Head(weight_VH=embedding), of.targets_N, variant=variant)
    (found.logprobs_N @ of.weights_N).backward()
    copy = of.weight_VH.clone().requires_grad_()
    logprobs = (copy[inputs].tanh() @ copy.T).log_softmax(-1).gather(1, of.targets_N[:, None])[:, 0]
    (logprobs @ of.weights_N).backward()
    torch.testing.assert_close(embedding.grad, copy.grad)


def test_no_gradient_is_computed_where_none_is_wanted():
    of = problem(frozen=True)
    assert not token_logprobs(of.hidden_NH, of.head(), of.targets_N, variant="chunked").logprobs_N.requires_grad
    with torch.no_grad():
        hidden = of.hidden_NH.clone().requires_grad_()
        assert not token_logprobs(hidden, of.head(), of.targets_N, variant="chunked").logprobs_N.requires_grad


@pytest.mark.parametrize("variant", ["reference", "chunked"])
def test_entropy_and_logprobs_can_each_be_left_out_of_the_loss(variant: str):
    of = problem()
    both = differentiated(of, variant="reference")["hidden"]

    def gradient(pick: str) -> torch.Tensor:
        hidden = of.hidden_NH.clone().requires_grad_()
        found = token_logprobs(hidden, of.head(), of.targets_N, want_entropy=True, variant=variant)
        loss = found.logprobs_N @ of.weights_N if pick == "logprobs" else found.entropy_N @ of.entropy_weights_N
        loss.backward()
        return hidden.grad

    torch.testing.assert_close(gradient("logprobs") + gradient("entropy"), both)


@pytest.mark.parametrize("variant", ["reference", "chunked"])
def test_certain_and_impossible_tokens_are_defined(variant: str):
    hidden, head = torch.eye(2).requires_grad_(), Head(weight_VH=torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]))
    found = token_logprobs(hidden, head, torch.tensor([0, 0]), want_entropy=True, variant=variant)
    assert found.logprobs_N.tolist() == [0.0, -1000.0]
    assert found.entropy_N.tolist() == [0.0, 0.0]
    (found.logprobs_N + found.entropy_N).sum().backward()
    assert hidden.grad.tolist() == [[0.0, 0.0], [1000.0, -1000.0]]


def test_rounding_makes_no_logprob_positive_and_no_entropy_negative():
    hidden, targets = torch.linspace(-50, 50, 1000)[:, None], torch.zeros(1000, dtype=torch.int64)
    for weight in (torch.ones(1, 1), torch.tensor([[1.0], [-1.0]])):
        found = token_logprobs(hidden, Head(weight_VH=weight), targets, want_entropy=True, variant="chunked")
        assert (found.logprobs_N <= 0).all()
        assert (found.entropy_N >= 0).all()


@pytest.mark.parametrize("variant", ["reference", "chunked"])
def test_a_target_that_is_masked_out_has_a_logprob_of_minus_infinity_and_spoils_no_other(variant: str):
    of = problem((4,), entropy=False)
    of.bias_V[of.targets_N[0]] = -torch.inf
    others = of.targets_N != of.targets_N[0]
    assert others.any()
    found = differentiated(of, variant=variant)
    assert (found["logprobs"] == -torch.inf).tolist() == (~others).tolist()
    assert found["hidden"][others].isfinite().all()


@pytest.mark.parametrize("variant", ["auto", "reference", "chunked"])
def test_no_tokens_are_no_logprobs_and_no_gradient(variant: str):
    found = differentiated(problem(()), variant=variant)
    assert found["logprobs"].shape == found["entropy"].shape == (0,)
    assert found["weight"].eq(0).all()
    assert found["bias"].eq(0).all()


def test_auto_is_the_reference_where_logits_are_small_and_holds_a_block_where_they_are_not():
    def graph(found: TokenValues) -> str:
        return found.logprobs_N.grad_fn.name()

    small = problem()
    assert "TokenLogprobs" not in graph(token_logprobs(small.hidden_NH, small.head(), small.targets_N))
    large = problem((100,), vocabulary=3000)
    assert "TokenLogprobs" in graph(token_logprobs(large.hidden_NH, large.head(), large.targets_N))


TARGETS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_NH": torch.ones(3, 4)}, r"hidden states have shape \[3, 4\]; for a head of shape \[5, 2\] they must"),
        ({"hidden_NH": torch.ones(1, 3, 2)}, r"hidden states have shape \[1, 3, 2\]"),
        ({"targets_N": TARGETS[:2]}, r"targets are torch.int64 of shape \[2\]; they must be token ids, int64 \[3\]"),
        ({"targets_N": TARGETS.float()}, "targets are torch.float32"),
        ({"targets_N": TARGETS.int()}, "targets are torch.int32"),
        ({"targets_N": TARGETS - 1}, "the target of token 0 is -1; token ids go from 0 to 4, and tokens that are not"),
        ({"targets_N": TARGETS + 3}, "the target of token 2 is 5; token ids go from 0 to 4"),
        ({"variant": "fast"}, "no variant 'fast'; choose one of auto, reference, chunked, triton"),
        ({"budget_bytes": 0}, "budget_bytes is 0; it must be positive"),
    ],
)
@pytest.mark.parametrize("variant", ["reference", "chunked"])
def test_what_cannot_be_computed_is_refused(arguments: dict[str, object], message: str, variant: str):
    valid = {
        "hidden_NH": torch.ones(3, 2),
        "head": Head(weight_VH=torch.ones(5, 2)),
        "targets_N": TARGETS,
        "variant": variant,
    }
    token_logprobs(**valid)
    with pytest.raises(ValueError, match=message):
        token_logprobs(**(valid | arguments))
