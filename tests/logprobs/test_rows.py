"""The torch functions on a block of logits against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from driftproof.logprobs import TokenValues, rows


def block(tokens: int, vocabulary: int, seed: int, offset: float, spread: float, impossible: float) -> Tensor:
    """float64 logits, some rows of them far from zero; column 0 is always possible."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
    logits += offset * torch.randint(-1, 2, (tokens, 1), generator=generator)
    logits[:, 1:].masked_fill_(torch.rand(tokens, vocabulary - 1, generator=generator) < impossible, -torch.inf)
    return logits


blocks = st.builds(
    block,
    st.integers(0, 6),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 30.0, 59.0, 200.0, 5000.0]),
    st.sampled_from([0.01, 3.0, 30.0]),
    st.sampled_from([0.0, 0.5]),
)


@given(
    blocks,
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from([1.0, 0.3]),
    st.sampled_from([None, 20.0]),
    st.booleans(),
    st.integers(0, 100),
)
def test_statistics_and_gradients_are_those_of_the_formulas(
    logits: Tensor, dtype: torch.dtype, temperature: float, softcap: float | None, entropy: bool, seed: int
):
    logits = logits.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(logits.shape[1], (len(logits),), generator=generator)
    g, h = torch.randn(2, len(logits), generator=generator, dtype=torch.float64)
    exact = logits.double()
    z = (exact if softcap is None else softcap * torch.tanh(exact / softcap)) / temperature
    possible = z > -torch.inf
    lse, p = z.logsumexp(1), z.softmax(1)
    mean = (p * z.where(possible, 0)).sum(1)
    at_target = z.gather(1, targets[:, None])[:, 0]

    untouched = logits.clone()
    found = rows.row_statistics(logits, targets, temperature=temperature, softcap=softcap, want_mean=entropy)
    assert torch.equal(logits, untouched)
    accuracy = 1e-11 if dtype == torch.float64 else 1e-5
    largest = z[possible].abs().max().item() if z.numel() else 0.0
    options = {"rtol": 0, "atol": accuracy * (1 + largest), "check_dtype": False}
    torch.testing.assert_close(found.lse_N, lse, **options)
    torch.testing.assert_close(found.target_N, at_target, **options)
    assert found.lse_N.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

    is_target = torch.zeros_like(z).scatter_(1, targets[:, None], 1)
    gradient = g[:, None] * (is_target - p)
    if entropy:
        assert found.mean_N is not None
        torch.testing.assert_close(found.mean_N, mean, **options)
        gradient -= h[:, None] * p * (z.where(possible, 0) - mean[:, None])
    if softcap is not None:
        gradient *= 1 - torch.tanh(exact / softcap) ** 2
    written = rows.logit_gradients_(
        logits,
        targets,
        found.lse_N,
        TokenValues(logprobs_N=g, entropy_N=h if entropy else None),
        found.mean_N,
        temperature=temperature,
        softcap=softcap,
    )
    assert written is logits
    # An error of lse is a relative error of p; the entropy's weight has the size of z.
    rounding = 0.005 if dtype == torch.bfloat16 else 0.0
    scale = g.abs().max().item() * (1 + largest) ** 2 / temperature if z.numel() else 1.0
    torch.testing.assert_close(
        logits.double(), gradient / temperature, rtol=rounding, atol=10 * accuracy * (1 + scale) * (1 + 3 * entropy)
    )


@pytest.mark.parametrize("tokens", [1, 3, 100])
def test_groups_of_rows_cover_the_block_whatever_its_width(tokens: int):
    """Wide rows come one by one, narrow ones together."""
    for vocabulary in (2, 1000, 400_000 // tokens):
        logits = torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(0))
        targets = torch.arange(tokens) % vocabulary
        found = rows.row_statistics(logits, targets, temperature=1.0, softcap=None, want_mean=False)
        torch.testing.assert_close(found.lse_N, logits.logsumexp(1))


def test_a_confident_target_keeps_its_small_gradient_in_bfloat16():
    """1 - p = 6e-6; p rounded to bfloat16 would be 1."""
    logits = torch.tensor([[12.0, 0.0]], dtype=torch.bfloat16)
    targets = torch.tensor([0])
    found = rows.row_statistics(logits, targets, temperature=1.0, softcap=None, want_mean=False)
    weights = TokenValues(logprobs_N=torch.ones(1))
    rows.logit_gradients_(logits, targets, found.lse_N, weights, None, temperature=1.0, softcap=None)
    expected = torch.sigmoid(torch.tensor(-12.0))
    torch.testing.assert_close(logits.float(), torch.stack([expected, -expected])[None], rtol=0.01, atol=1e-6)
