import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.logprobs import token_logprobs


def inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Hidden states [7, 12], head [19, 12], bias [19], targets [7]."""
    generator = torch.Generator().manual_seed(seed)
    hidden, head, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((7, 12), (19, 12), (19,)))
    return hidden, head, bias, torch.randint(19, (7,), generator=generator)


@given(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([1.0, 0.3, 2.5]),
    st.sampled_from([None, 1.5, 30.0]),
)
def test_logprobs_and_entropy_are_those_of_the_whole_distribution(
    seed: int, biased: bool, temperature: float, softcap: float | None
):
    hidden, head, bias, targets = inputs(seed)
    result = token_logprobs(
        hidden,
        head,
        targets,
        bias_V=bias if biased else None,
        temperature=temperature,
        softcap=softcap,
        want_entropy=True,
    )
    logits = hidden.double() @ head.double().T + (bias.double() if biased else 0)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    torch.testing.assert_close(result.logprobs_N.double(), distribution.log_prob(targets), rtol=1e-5, atol=1e-5)
    assert result.entropy_N is not None
    torch.testing.assert_close(result.entropy_N.double(), distribution.entropy(), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_log_softmax():
    hidden, head, bias, targets = inputs()
    leaves = [tensor.requires_grad_() for tensor in (hidden, head, bias)]
    token_logprobs(hidden, head, targets, bias_V=bias, temperature=0.7).logprobs_N.sum().backward()
    found = [leaf.grad for leaf in leaves]
    copies = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = (copies[0] @ copies[1].T + copies[2]) / 0.7
    logits.log_softmax(-1).gather(1, targets[:, None]).sum().backward()
    for gradient, copy in zip(found, copies, strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient.double(), copy.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_results_are_float32_whatever_the_inputs(dtype: torch.dtype):
    hidden, head, bias, targets = inputs(dtype=dtype)
    result = token_logprobs(hidden, head, targets, bias_V=bias, want_entropy=True)
    assert result.logprobs_N.dtype == torch.float32
    assert result.entropy_N is not None
    assert result.entropy_N.dtype == torch.float32
    exact = torch.nn.functional.linear(hidden, head, bias).double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(result.logprobs_N.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_entropy_has_no_gradient_and_is_computed_only_when_asked_for():
    hidden, head, _, targets = inputs()
    hidden.requires_grad_()
    assert token_logprobs(hidden, head, targets).entropy_N is None
    entropy = token_logprobs(hidden, head, targets, want_entropy=True).entropy_N
    assert entropy is not None
    assert not entropy.requires_grad


def test_certain_and_impossible_tokens_stay_finite_in_entropy():
    hidden, head = torch.eye(2), torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    result = token_logprobs(hidden, head, torch.tensor([0, 0]), want_entropy=True)
    assert result.logprobs_N.tolist() == [0.0, -1000.0]
    assert result.entropy_N is not None
    assert result.entropy_N.tolist() == [0.0, 0.0]


def test_no_tokens_are_no_logprobs():
    hidden, head, _, _ = inputs()
    result = token_logprobs(hidden[:0], head, torch.empty(0, dtype=torch.int64), want_entropy=True)
    assert result.logprobs_N.shape == (0,)
