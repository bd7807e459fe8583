"""Values per token: what a policy says of each, or the derivatives of a loss by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenValues:
    """A policy's numbers for N tokens, or the derivatives of a loss by these numbers, field by field.

    float32, or float64 where the hidden states are. None is what was not asked for, or what the loss does not look at.
    """

    logprobs_N: Tensor
    """Nats, at most 0."""
    entropy_N: Tensor | None = None
    """Nats, of the whole distribution."""
    values_N: Tensor | None = None
    """The critic's value before each token."""

    @property
    def fields(self) -> dict[str, Tensor]:
        """The fields that are there, by name."""
        found = {name: getattr(self, name) for name in TokenValues.__dataclass_fields__}
        return {name: values_N for name, values_N in found.items() if values_N is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenValues:
        """`function` of each field that is there."""
        return TokenValues(**{name: function(values_N) for name, values_N in self.fields.items()})


class TokenBuffer:
    """Values of N tokens, filled in part by part; 0 where nothing is known."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self._tokens = tokens
        self._fields = {"logprobs_N": torch.zeros(tokens, device=device)}

    def put(self, tokens: Tensor | slice, values: TokenValues) -> None:
        for name, values_N in values.fields.items():
            if name not in self._fields:
                self._fields[name] = values_N.new_zeros(self._tokens)
            self._fields[name][tokens] = values_N.detach()

    def all(self) -> TokenValues:
        return TokenValues(**self._fields)


TokenGradients = Callable[[TokenValues, slice, slice], TokenValues]
"""token_gradients(scored, responses, tokens): the loss of some neighbouring whole responses, differentiated by what was
`scored` of their tokens. Which responses and tokens they are is counted in what is differentiated as a whole."""
