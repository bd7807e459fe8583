import pytest
import torch
from hypothesis import given

from .problems import Problem, differentiated, problem, problems


@given(problems)
def test_logprobs_entropy_and_gradients_are_those_of_the_whole_distribution(of: Problem):
    if not of.lengths or sum(of.lengths) == 0:
        return
    found = differentiated(of, variant="reference")
    hidden, head = of.hidden_NH.clone().requires_grad_(), of.head()
    logits = hidden @ head.weight_VH.T + (0 if head.bias_V is None else head.bias_V)
    if of.softcap is not None:
        logits = of.softcap * torch.tanh(logits / of.softcap)
    # A very unlikely token in place of an impossible one: torch's own entropy would be NaN.
    distribution = torch.distributions.Categorical(logits=(logits / of.temperature).clamp_min(-1e4))
    logprobs = distribution.log_prob(of.targets_N)
    possible = found["logprobs"] > -torch.inf
    torch.testing.assert_close(found["logprobs"][possible], logprobs[possible].detach())
    assert (logprobs[~possible] < -9e3).all()
    entropy = distribution.entropy()
    weighted = logprobs @ of.weights_N
    if of.entropy_weights_N is not None:
        torch.testing.assert_close(found["entropy"], entropy.detach())
        weighted = weighted + entropy @ of.entropy_weights_N
    if not possible.all():
        return
    weighted.backward()
    torch.testing.assert_close(found["hidden"], hidden.grad)
    if not of.frozen:
        torch.testing.assert_close(found["weight"], head.weight_VH.grad)
    if head.bias_V is not None and not of.frozen:
        torch.testing.assert_close(found["bias"], head.bias_V.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_results_are_float32_at_least(dtype: torch.dtype):
    of = problem().to(dtype)
    found = differentiated(of, variant="reference")
    assert found["logprobs"].dtype == found["entropy"].dtype == torch.float32
    logits = torch.nn.functional.linear(of.hidden_NH, of.weight_VH, of.bias_V).double() / of.temperature
    exact = logits.log_softmax(-1).gather(1, of.targets_N[:, None])[:, 0]
    torch.testing.assert_close(found["logprobs"].double(), exact, rtol=1e-5, atol=1e-5)
