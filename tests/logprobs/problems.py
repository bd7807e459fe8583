"""Problems for every variant of the operation, and the two ways through it, as lists of tensors to compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from driftproof.logprobs import Head, TokenValues, head_gradients, token_logprobs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Some responses' hidden states, a head, and a loss: the sum of `weight * logprob + entropy_weight * entropy`."""

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    targets_N: Tensor
    lengths: tuple[int, ...]
    weights_N: Tensor
    entropy_weights_N: Tensor | None
    temperature: float
    softcap: float | None
    frozen: bool

    def to(self, dtype: torch.dtype) -> Problem:
        """The inputs rounded to another dtype."""
        cast = {name: getattr(self, name) for name in self.__slots__}
        for name in ("hidden_NH", "weight_VH", "bias_V"):
            cast[name] = None if cast[name] is None else cast[name].to(dtype)
        return Problem(**cast)

    def head(self) -> Head:
        """With new leaves."""
        return Head(
            weight_VH=self.weight_VH.clone().requires_grad_(not self.frozen),
            bias_V=None if self.bias_V is None else self.bias_V.clone().requires_grad_(not self.frozen),
            temperature=self.temperature,
            softcap=self.softcap,
        )

    @property
    def want_entropy(self) -> bool:
        return self.entropy_weights_N is not None


def problem(
    lengths: tuple[int, ...] = (3, 0, 4, 2),
    *,
    seed: int = 0,
    hidden: int = 5,
    vocabulary: int = 11,
    temperature: float = 0.7,
    softcap: float | None = None,
    biased: bool = True,
    impossible: bool = False,
    entropy: bool = True,
    frozen: bool = False,
) -> Problem:
    """float64; where `impossible`, some tokens have a bias of -inf, perhaps a target too."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = sum(lengths)
    bias_V = normal(vocabulary)
    if impossible:
        bias_V[1:].masked_fill_(torch.rand(vocabulary - 1, generator=generator) < 0.4, -torch.inf)
    return Problem(
        hidden_NH=normal(tokens, hidden),
        weight_VH=normal(vocabulary, hidden),
        bias_V=bias_V if biased or impossible else None,
        targets_N=torch.randint(vocabulary, (tokens,), generator=generator),
        lengths=lengths,
        weights_N=normal(tokens),
        entropy_weights_N=normal(tokens) if entropy else None,
        temperature=temperature,
        softcap=softcap,
        frozen=frozen,
    )


problems = st.builds(
    problem,
    st.lists(st.integers(0, 6), max_size=6).map(tuple),
    seed=st.integers(0, 2**32 - 1),
    hidden=st.integers(1, 6),
    vocabulary=st.integers(1, 30),
    temperature=st.sampled_from([1.0, 0.3, 2.5]),
    softcap=st.sampled_from([None, 0.5, 30.0]),
    biased=st.booleans(),
    impossible=st.booleans(),
    entropy=st.booleans(),
    frozen=st.booleans(),
)


def differentiated(of: Problem, head: Head | None = None, **options: Any) -> dict[str, Tensor | None]:
    """What `token_logprobs` and autograd give."""
    hidden_NH = of.hidden_NH.clone().requires_grad_()
    head = of.head() if head is None else head
    found = token_logprobs(hidden_NH, head, of.targets_N, want_entropy=of.want_entropy, **options)
    outputs, weights = [found.logprobs_N], [of.weights_N.to(found.logprobs_N.dtype)]
    if of.entropy_weights_N is not None:
        assert found.entropy_N is not None
        outputs.append(found.entropy_N)
        weights.append(of.entropy_weights_N.to(found.logprobs_N.dtype))
    torch.autograd.backward(outputs, weights)
    return {
        "logprobs": found.logprobs_N.detach(),
        "entropy": None if found.entropy_N is None else found.entropy_N.detach(),
        "hidden": hidden_NH.grad,
        "weight": head.weight_VH.grad,
        "bias": None if head.bias_V is None else head.bias_V.grad,
    }


def finished(of: Problem, head: Head | None = None, **options: Any) -> dict[str, Tensor | None]:
    """What `head_gradients` gives; it must call back with each response once, in order."""
    head = of.head() if head is None else head
    scored: list[TokenValues] = []
    called, seen = 0, 0

    def token_gradients(chunk: TokenValues, responses: slice, tokens: slice) -> TokenValues:
        nonlocal called, seen
        assert (responses.start, tokens.start) == (called, seen)
        assert responses.stop > responses.start
        assert not torch.is_grad_enabled()
        assert not chunk.logprobs_N.requires_grad
        assert len(chunk.logprobs_N) == tokens.stop - tokens.start == sum(of.lengths[responses])
        called, seen = responses.stop, tokens.stop
        scored.append(chunk)
        return TokenValues(
            logprobs_N=of.weights_N[tokens],
            entropy_N=None if of.entropy_weights_N is None else of.entropy_weights_N[tokens],
        )

    gradients = head_gradients(
        of.hidden_NH, head, of.targets_N, of.lengths, token_gradients, want_entropy=of.want_entropy, **options
    )
    assert called == len(of.lengths)
    nothing = of.hidden_NH.new_empty(0)
    entropies = [chunk.entropy_N for chunk in scored if chunk.entropy_N is not None]
    return {
        "logprobs": torch.cat([nothing, *(chunk.logprobs_N for chunk in scored)]),
        "entropy": torch.cat([nothing, *entropies]) if of.want_entropy else None,
        "hidden": gradients.hidden_NH,
        "weight": gradients.weight_VH,
        "bias": gradients.bias_V,
    }


def assert_same(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], *, tolerance: float) -> None:
    """Each tensor, where it is finite, to `tolerance` of the largest number in it; absent where absent."""
    for name, value in expected.items():
        other = found[name]
        if value is None:
            assert other is None, name
            continue
        assert other is not None, name
        finite = value[value.isfinite()]
        scale = max(1.0, finite.abs().max().item() if len(finite) else 0.0)
        torch.testing.assert_close(
            other.double(),
            value.double(),
            rtol=0,
            atol=tolerance * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )
