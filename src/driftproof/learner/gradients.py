"""The gradient of one optimizer update, and what the update says about itself.

Guarantees: whatever the cut into micro-batches, and whether or not the objective is separable, the gradient is that of
the objective on the whole update; only for one that is not separable every micro-batch is scored twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from driftproof.learner.flat_batch import FlatBatch
from driftproof.learner.packing import MicroBatch
from driftproof.learner.policy import Finish, Policy, Scored
from driftproof.metrics.health import step_health
from driftproof.objectives import Objective, ObjectiveOutput


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Differentiated:
    """What an update says about itself."""

    metrics: dict[str, float]
    """Its loss, and objective and health metrics."""
    not_finite_R: Tensor
    """bool [R]: the responses of which a log-prob, or the loss's gradient by one of their tokens, is not finite."""


def backward(
    policy: Policy,
    objective: Objective,
    micro_batches: Sequence[MicroBatch],
    flat: FlatBatch,
    *,
    want_entropy: bool,
) -> Differentiated:
    """Add the update's gradient to that of the policy's parameters."""
    update = _Update(objective, flat, _Tokens(flat.tokens), _Tokens(flat.tokens))
    if not objective.separable:
        scores = score(policy, micro_batches, flat.tokens, want_entropy=want_entropy)
        update.differentiate(scores, slice(None), slice(None))
    for micro_batch in micro_batches:
        policy.backward(micro_batch, update.finish(micro_batch), want_entropy=want_entropy)
    responses, gradients = flat.part(update.scores.all(policy.device)), update.gradients.all(policy.device)
    health = step_health(responses, gradients.logprobs_N, temperature=policy.temperature)
    metrics = {f"objective/{name}": float(value) for name, value in update.metrics.items()}
    finite_N = responses.logprobs_N.isfinite() & gradients.logprobs_N.isfinite()
    not_finite_R = torch.zeros(flat.responses, dtype=torch.bool, device=finite_N.device)
    not_finite_R[responses.segment_N[~finite_N]] = True
    return Differentiated(metrics={"loss": float(update.loss), **metrics, **health}, not_finite_R=not_finite_R)


@torch.no_grad()
def score(policy: Policy, micro_batches: Sequence[MicroBatch], tokens: int, *, want_entropy: bool = False) -> Scored:
    """What the policy says of all tokens of an update, without gradient, in the order of the groups."""
    scores = _Tokens(tokens)
    for micro_batch in micro_batches:
        scores.put(micro_batch.tokens_N, policy.score(micro_batch, want_entropy=want_entropy))
    return scores.all(policy.device)


@dataclass(slots=True)
class _Tokens:
    """Values of the N tokens of an update, filled in part by part."""

    count: int
    known: dict[str, Tensor] = field(default_factory=dict)

    def put(self, tokens: Tensor | slice, part: Scored) -> None:
        for name in Scored.__dataclass_fields__:
            values = getattr(part, name)
            if values is not None:
                if name not in self.known:
                    self.known[name] = values.new_zeros(self.count)
                self.known[name][tokens] = values.detach()

    def get(self, tokens: Tensor | slice) -> Scored:
        return Scored(**{name: values[tokens] for name, values in self.known.items()})

    def all(self, device: torch.device) -> Scored:
        self.known.setdefault("logprobs_N", torch.zeros(self.count, device=device))
        return self.get(slice(None))


@dataclass(slots=True)
class _Update:
    """What is known of an update so far."""

    objective: Objective
    flat: FlatBatch
    scores: _Tokens
    gradients: _Tokens
    loss: Tensor | float = 0.0
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def finish(self, micro_batch: MicroBatch) -> Finish:
        def finish(scored: Scored, responses: slice, tokens: slice) -> Scored:
            tokens_N = micro_batch.tokens_N[tokens]
            if self.objective.separable:
                self.differentiate(scored, micro_batch.responses_R[responses], tokens_N)
            return self.gradients.get(tokens_N)

        return finish

    def differentiate(self, scored: Scored, responses: Tensor | slice, tokens: Tensor | slice) -> None:
        """Take the loss of some responses, and its gradient by each of their tokens."""
        given = {name: getattr(scored, name) for name in Scored.__dataclass_fields__}
        leaves = {name: values.detach().requires_grad_() for name, values in given.items() if values is not None}
        with torch.enable_grad():
            output: ObjectiveOutput = self.objective(self.flat.part(Scored(**leaves), responses, tokens))
            found = torch.autograd.grad(output.loss, list(leaves.values()), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None}
        self.scores.put(tokens, scored)
        self.gradients.put(tokens, Scored(**gradients))
        self.loss = self.loss + output.loss.detach()
        self.metrics = {name: self.metrics.get(name, 0) + value for name, value in output.metrics.items()}
