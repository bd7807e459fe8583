"""The contract of an objective, the normalisers it may choose from, and the terms that any of them can take.

An objective's loss is final: it is divided by the counts of the whole optimizer step inside the objective, and nothing
outside rescales it. It is a sum over tokens; what a response as a whole decides (its mean NLL, a sequence ratio) enters
without gradient. So losses, gradients and metrics of the parts of a step add up to those of the step, even where a
response lies on several ranks.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

from torch import Tensor

from driftproof.errors import ObjectiveError
from driftproof.objectives.responses import Responses
from driftproof.types import Channel

Aggregation = Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]
KLEstimator = Literal["k1", "k2", "k3"]


class Bounds(NamedTuple):
    """Smallest and largest value of a hyper-parameter, both allowed: `floor: Annotated[float, Bounds(0.0, 10.0)]`."""

    low: float = -math.inf
    high: float = math.inf


Share = Annotated[float, Bounds(0.0, 1.0)]
NonNegative = Annotated[float, Bounds(0.0)]
AtLeastOne = Annotated[float, Bounds(1.0)]

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before the exponential, so that a ratio is finite; beyond it there is no gradient."""


class TokenLosses(NamedTuple):
    """An objective's losses of each token, before aggregation."""

    losses_N: Tensor
    """[N], with gradient."""
    metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ObjectiveOutput:
    """Loss and metrics of one `Responses`."""

    loss: Tensor
    """Scalar, to be minimised."""
    metrics: dict[str, Tensor]
    """Detached scalars; shares of the whole step, so that summing over its parts gives the step's value."""


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A loss over responses and what it needs; the fields are its hyper-parameters, checked by their types.

    `aggregation`, with m tokens in a response, R responses and N tokens in the step:
    `seq-mean-token-mean` weighs a token 1/(R m), `token-mean` 1/N, `seq-mean-token-sum-norm` 1/(R horizon).

    Two terms can be added to any objective, aggregated like its own loss: `kl` times an estimate of the divergence to a
    reference policy, and minus `entropy_bonus` times the policy's entropy. The estimators, with d = log pi - log ref at
    the sampled token (Schulman, "Approximating KL divergence", 2020): k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. As
    losses they differ: where the policy samples itself, k2's gradient is that of KL(pi, ref), k3's that of KL(ref, pi),
    and k1's is zero on average, so that k1 measures and does not regularise. The default is k3, as in arXiv 2402.03300.
    On stale responses all three are taken under the policy that sampled.
    """

    name: ClassVar[str]
    channels: ClassVar[frozenset[Channel]] = frozenset()
    """Needs of every instance; `needs` are those of this one."""
    separable: ClassVar[bool] = True
    """Whether the loss of whole responses can be had without the others, once the totals are known."""
    aggregation: Aggregation = "seq-mean-token-mean"
    horizon: int | None = None
    """Tokens; the constant that replaces m under `seq-mean-token-sum-norm`, and only there."""
    kl: NonNegative = 0.0
    """Weight of the KL term; 0 is off, and then no reference policy is needed."""
    kl_estimator: KLEstimator = "k3"
    entropy_bonus: Annotated[float, Bounds()] = 0.0
    """Weight of the entropy bonus; 0 is off."""

    def __post_init__(self) -> None:
        for field, kind in get_type_hints(type(self), include_extras=True).items():
            if get_origin(kind) is Literal:
                _check_choice(self, field, get_args(kind))
            elif get_origin(kind) is Annotated and isinstance(bounds := get_args(kind)[1], Bounds):
                check_range(self, field, *bounds)
            elif kind is bool and not isinstance(value := getattr(self, field), bool):
                raise ObjectiveError(f"{self.name}: {field} is {value!r}; it must be true or false")
        if (self.aggregation == "seq-mean-token-sum-norm") != (self.horizon is not None):
            raise ObjectiveError(
                f"{self.name}: `horizon` (tokens, usually the longest response allowed) belongs to aggregation "
                f"seq-mean-token-sum-norm, and that needs it; got aggregation {self.aggregation!r} and horizon "
                f"{self.horizon}"
            )
        if self.horizon is not None:
            check_range(self, "horizon", 1, math.inf)

    @property
    def needs(self) -> frozenset[Channel]:
        """The channels that `Responses` must carry."""
        needs = self.channels
        if self.kl:
            needs |= {Channel.REFERENCE_LOGPROBS}
        if self.entropy_bonus:
            needs |= {Channel.ENTROPY}
        return needs

    def __call__(self, batch: Responses) -> ObjectiveOutput:
        """The loss of `batch`, a part of an optimizer step, and its metrics.

        Raises:
            ObjectiveError: a channel that is needed is not there; or an objective that is not `separable` is given a
                part of a step.
        """
        for channel in sorted(self.needs):
            if getattr(batch, f"{channel}_N") is None:
                raise ObjectiveError(f"objective {self.name!r} needs {channel}, and the batch carries none")
        losses_N, metrics = self.token_losses(batch)
        if self.kl:
            kl_N = self._divergence(batch)
            losses_N = losses_N + self.kl * kl_N
            metrics = metrics | {"kl": kl_N.detach().sum() / max(batch.total_tokens, 1)}
        if self.entropy_bonus:
            assert batch.entropy_N is not None
            losses_N = losses_N - self.entropy_bonus * batch.entropy_N
        return ObjectiveOutput(self.aggregate(batch, losses_N), metrics)

    @abstractmethod
    def token_losses(self, batch: Responses) -> TokenLosses:
        """The objective's own loss of each token."""

    def aggregate(self, batch: Responses, losses_N: Tensor) -> Tensor:
        """[N] -> scalar: this part's share of the step's loss."""
        if self.aggregation == "token-mean":
            return losses_N.sum() / max(batch.total_tokens, 1)
        if self.aggregation == "seq-mean-token-mean":
            return (losses_N / batch.per_token(batch.lengths_R)).sum() / max(batch.total_responses, 1)
        assert self.horizon is not None
        return losses_N.sum() / (max(batch.total_responses, 1) * self.horizon)

    def _divergence(self, batch: Responses) -> Tensor:
        assert batch.reference_logprobs_N is not None
        difference_N = batch.logprobs_N - batch.reference_logprobs_N
        if self.kl_estimator == "k1":
            return difference_N
        if self.kl_estimator == "k2":
            return difference_N.square() / 2
        return (-difference_N).clamp(max=MAX_LOG_RATIO).exp() - 1 + difference_N


def check_range(objective: Objective, field: str, low: float, high: float) -> None:
    """Refuse a field that is no number or outside [low, high] (NaN included)."""
    value = getattr(objective, field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ObjectiveError(f"{objective.name}: {field} is {value!r}; it must be a number from {low} to {high}")


def _check_choice(objective: Objective, field: str, choices: tuple[str, ...]) -> None:
    value = getattr(objective, field)
    if value not in choices:
        raise ObjectiveError(f"{objective.name}: unknown {field} {value!r}; valid: {', '.join(choices)}")


def only_per_response_means(objective: Objective, reason: str) -> None:
    """Refuse every aggregation but `seq-mean-token-mean`."""
    if objective.aggregation != "seq-mean-token-mean":
        raise ObjectiveError(
            f"{objective.name}: aggregation is {objective.aggregation!r}; {reason}, which fixes it to "
            "'seq-mean-token-mean'"
        )
