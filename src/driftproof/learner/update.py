"""The gradient of one optimizer update. The plain path is the text:

```python
for micro_batch in micro_batches:
    scored = policy.score(micro_batch)
    output = objective(flat.part(scored, micro_batch.responses_R, micro_batch.tokens_N))
    output.loss.backward()
```

The fused path, which runs unless `fused` is false, gives the same gradient to rounding. It differentiates the loss
while the output layer's logits are still there, and so computes them once.

Guarantees: whatever the cut into micro-batches, and whether or not the objective is separable, the gradient is that of
the objective on the whole update; only for one that is not separable every micro-batch is scored twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from driftproof.learner.flat_batch import EVERYTHING, FlatBatch
from driftproof.learner.packing import MicroBatch
from driftproof.learner.policy import Policy
from driftproof.logprobs import TokenBuffer, TokenValues
from driftproof.metrics import names
from driftproof.metrics.health import health_figures
from driftproof.objectives import Objective, Responses

Places = Tensor | slice
Loss = Callable[[TokenValues, Places, Places], Tensor]
"""loss(scored, responses, tokens): the loss of some whole responses, from what was scored of their tokens."""


def backward(
    policy: Policy, objective: Objective, micro_batches: Sequence[MicroBatch], flat: FlatBatch, *, fused: bool = True
) -> Update:
    """Add the update's gradient to that of the policy's parameters."""
    update = Update(objective, flat, policy.device)
    loss: Loss = update.loss
    if not objective.separable:
        # It sees the whole update at once, which gives each token the derivative that its micro-batch hands on.
        scored = score(policy, micro_batches, flat.tokens, want_entropy=True)
        update.scored.put(EVERYTHING, scored)
        update.gradients.put(EVERYTHING, _differentiate(loss, scored, EVERYTHING, EVERYTHING))
        loss = _linear(update.gradients.all())
    path = fused_backward if fused else plain_backward
    for micro_batch in micro_batches:
        scored, gradients = path(policy, micro_batch, loss)
        if objective.separable:
            update.scored.put(micro_batch.tokens_N, scored)
            update.gradients.put(micro_batch.tokens_N, gradients)
    return update


def plain_backward(policy: Policy, micro_batch: MicroBatch, loss: Loss) -> tuple[TokenValues, TokenValues]:
    """Add the gradient of a micro-batch's loss; the values of its tokens, and the loss's derivatives by them."""
    scored = policy.score(micro_batch, want_entropy=True)
    for values_N in scored.fields.values():
        values_N.retain_grad()
    loss(scored, micro_batch.responses_R, micro_batch.tokens_N).backward()
    gradients = {name: values_N.grad for name, values_N in scored.fields.items() if values_N.grad is not None}
    return scored.map(Tensor.detach), TokenValues(**gradients)


def fused_backward(policy: Policy, micro_batch: MicroBatch, loss: Loss) -> tuple[TokenValues, TokenValues]:
    """`plain_backward`, which computes the logits once: the loss is differentiated while they are still there."""

    def token_gradients(scored: TokenValues, responses: slice, tokens: slice) -> TokenValues:
        return _differentiate(loss, scored, micro_batch.responses_R[responses], micro_batch.tokens_N[tokens])

    return policy.backward(micro_batch, token_gradients, want_entropy=True)


class Update:
    """An update as it is made: its loss and metrics, the values of its tokens, and the derivatives by them."""

    def __init__(self, objective: Objective, flat: FlatBatch, device: torch.device) -> None:
        self.objective, self.flat = objective, flat
        self.total_loss = torch.zeros((), device=device)
        self.metrics: dict[str, Tensor] = {}
        self.scored, self.gradients = TokenBuffer(flat.tokens, device), TokenBuffer(flat.tokens, device)

    def loss(self, scored: TokenValues, responses: Places, tokens: Places) -> Tensor:
        """The objective's loss of some whole responses; it is counted, and so are the objective's metrics."""
        output = self.objective(self.flat.part(scored, responses, tokens))
        self.total_loss = self.total_loss + output.loss.detach()
        self.metrics = {name: self.metrics.get(name, 0) + value for name, value in output.metrics.items()}
        return output.loss

    def figures(self, temperature: float) -> dict[str, Tensor]:
        """Loss, metrics of the objective and health of the update, as scalars on the device."""
        health = health_figures(self.responses, self.gradients.all().logprobs_N, temperature=temperature)
        metrics = {f"objective/{name}": value for name, value in self.metrics.items()}
        return {names.LOSS: self.total_loss, **metrics, **health}

    @property
    def responses(self) -> Responses:
        """All responses of the update with what was scored of them."""
        return self.flat.part(self.scored.all())

    @property
    def not_finite_R(self) -> Tensor:
        """bool [R]: the responses of which a log-prob, or the loss's derivative by one, is not finite."""
        responses = self.responses
        finite_N = responses.logprobs_N.isfinite() & self.gradients.all().logprobs_N.isfinite()
        not_finite_R = torch.zeros(len(self.flat.lengths_R), dtype=torch.bool, device=finite_N.device)
        not_finite_R[responses.segment_N[~finite_N]] = True
        return not_finite_R


@torch.no_grad()
def score(
    policy: Policy, micro_batches: Sequence[MicroBatch], tokens: int, *, want_entropy: bool = False
) -> TokenValues:
    """The policy's values of all tokens of an update, without gradient, in the order of the groups."""
    scored = TokenBuffer(tokens, policy.device)
    for micro_batch in micro_batches:
        scored.put(micro_batch.tokens_N, policy.score(micro_batch, want_entropy=want_entropy))
    return scored.all()


def _differentiate(loss: Loss, scored: TokenValues, responses: Places, tokens: Places) -> TokenValues:
    """The loss's derivatives by what was scored; a field that it does not look at has none."""
    leaves = scored.map(lambda values_N: values_N.detach().requires_grad_())
    with torch.enable_grad():
        found = torch.autograd.grad(loss(leaves, responses, tokens), list(leaves.fields.values()), allow_unused=True)
    known = zip(leaves.fields, found, strict=True)
    return TokenValues(**{name: gradient_N for name, gradient_N in known if gradient_N is not None})


def _linear(gradients: TokenValues) -> Loss:
    """The loss that has these derivatives, whatever is scored."""

    def loss(scored: TokenValues, responses: Places, tokens: Places) -> Tensor:
        terms = [(gradient_N[tokens] * scored.fields[name]).sum() for name, gradient_N in gradients.fields.items()]
        return torch.stack(terms).sum()

    return loss
