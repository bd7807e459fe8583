"""The contract of an objective, and the normalisers it may choose from.

An objective's loss is final: it is divided by the counts of the whole optimizer step inside the objective, and nothing
outside rescales it. Losses and metrics of the parts of a step add up to those of the step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from driftproof.objectives.responses import Responses
from driftproof.types import Channel

Aggregation = Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]


class ObjectiveError(ValueError):
    """An objective that does not exist or whose fields are not valid."""


@dataclass(frozen=True, slots=True)
class ObjectiveOutput:
    """What an objective returns for one `Responses`."""

    loss: Tensor
    """Scalar, to be minimised."""
    metrics: dict[str, Tensor]
    """Detached scalars; shares of the whole step, so that summing over its parts gives the step's value."""


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A loss over responses and what it needs; the fields are its hyper-parameters."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Channel]] = frozenset()

    @abstractmethod
    def __call__(self, batch: Responses) -> ObjectiveOutput:
        """The loss of `batch`, a part of an optimizer step, and its metrics."""


@dataclass(frozen=True, kw_only=True)
class TokenLossObjective(Objective):
    """An objective whose loss is a weighted sum of token losses.

    `aggregation`, with m tokens in a response, R responses and N tokens in the step:
    `seq-mean-token-mean` weighs a token 1/(R m), `token-mean` 1/N, `seq-mean-token-sum-norm` 1/(R horizon).
    """

    aggregation: Aggregation = "seq-mean-token-mean"
    horizon: int | None = None
    """Tokens; the constant that replaces m under `seq-mean-token-sum-norm`, and only there."""

    def __post_init__(self) -> None:
        if self.aggregation not in get_args(Aggregation):
            valid = ", ".join(get_args(Aggregation))
            raise ObjectiveError(f"{self.name}: unknown aggregation {self.aggregation!r}; valid: {valid}")
        if (self.aggregation == "seq-mean-token-sum-norm") != (self.horizon is not None):
            raise ObjectiveError(
                f"{self.name}: `horizon` (tokens) belongs to aggregation seq-mean-token-sum-norm, and that needs it; "
                f"got aggregation {self.aggregation!r} and horizon {self.horizon}"
            )
        if self.horizon is not None:
            check_range(self, "horizon", 1, math.inf)

    def aggregate(self, batch: Responses, losses_N: Tensor) -> Tensor:
        """[N] -> scalar: this part's share of the step's loss."""
        if self.aggregation == "token-mean":
            return losses_N.sum() / max(batch.total_tokens, 1)
        if self.aggregation == "seq-mean-token-mean":
            return batch.mean_per_response(losses_N).sum() / batch.total_responses
        assert self.horizon is not None
        return losses_N.sum() / (batch.total_responses * self.horizon)


def check_range(objective: Objective, field: str, low: float, high: float) -> None:
    """Refuse a field that is no number or outside [low, high] (NaN included).

    Raises:
        ObjectiveError: naming objective, field, value and range.
    """
    value = getattr(objective, field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ObjectiveError(f"{objective.name}: {field} is {value!r}; it must be a number from {low} to {high}")
