"""Health of a step, for when the loss says nothing: how hard positives and negatives pull, how far data has drifted.

`step_health` turns the responses of an optimizer step into the figures that `names` explains. Every value is finite;
a figure without data (no negatives, say, or no behavior log-probs) is left out.

A response trains if it has tokens and an advantage that is not 0. log rho is clamped to +-20, except in the products.

The gradient mass sums abs(dL/dlog p) 2 (1 - p) / temperature over the tokens of the responses with A > 0, and of those
with A < 0: the gradient of log p by the logits (after soft-capping) is (onehot - softmax) / temperature. What a KL term
adds to dL/dlog p is counted, an entropy bonus is not. 1 - p <= -log p, so ASymPO's mass is at most 2 sum abs A / R.

Source: arXiv 2606.03070, Eq. 3 and Theorems 3-4.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from driftproof.metrics import names
from driftproof.objectives import Responses
from driftproof.objectives.objective import MAX_LOG_RATIO

SMALLEST_NLL = 1e-12
"""Nats; a response of smaller mean NLL counts as this in 1/S, so that it is finite."""


def step_health(
    batch: Responses, token_gradients_N: Tensor | None = None, *, temperature: float = 1.0
) -> dict[str, float]:
    """The health metrics of the responses of a step; see `health_figures`."""
    return read_figures(health_figures(batch, token_gradients_N, temperature=temperature))


def read_figures(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Figures as numbers, fetched from their device at once; those of `health/` that have no data are left out."""
    values = torch.stack([figure.double() for figure in figures.values()]).tolist() if figures else []
    # What has no data is 0 / 0, or the extreme of nothing.
    numbers = zip(figures, values, strict=True)
    return {name: value for name, value in numbers if math.isfinite(value) or not name.startswith("health/")}


@torch.no_grad()
def health_figures(
    batch: Responses, token_gradients_N: Tensor | None = None, *, temperature: float = 1.0
) -> dict[str, Tensor]:
    """The health metrics of a step's whole responses, as scalars on their device; not finite where there is no data.

    `token_gradients_N` [N] is the derivative of the step's loss by each token's log-prob; the log-probs are those of
    softmax(logits / temperature).
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; the gradient by the logits needs a positive one")
    if not len(batch.lengths_R):
        return {}
    figures = _scales(batch)
    if batch.entropy_N is not None:
        figures[names.ENTROPY] = batch.entropy_N.double().mean()
    if token_gradients_N is not None:
        figures |= _gradient_masses(batch, token_gradients_N, temperature)
    if batch.behavior_logprobs_N is not None and len(batch.logprobs_N):
        figures |= _drift(batch, batch.behavior_logprobs_N)
    return figures


def _scales(batch: Responses) -> dict[str, Tensor]:
    nll_R = -batch.mean_per_response(batch.logprobs_N.double())
    advantages_R = batch.advantages_R.double()
    positive_R, negative_R = advantages_R.clamp(min=0), (-advantages_R).clamp(min=0)
    positive_mass, negative_mass = (positive_R * nll_R).mean(), (negative_R * nll_R).mean()
    positive_nll, negative_nll = positive_mass / positive_R.mean(), negative_mass / negative_R.mean()
    inverse_R = 1 / nll_R.clamp(min=SMALLEST_NLL)
    trains_R = (advantages_R != 0) & (batch.lengths_R > 0)
    return {
        names.NLL: nll_R.mean(),
        names.POSITIVE_NLL: positive_nll,
        names.NEGATIVE_NLL: negative_nll,
        names.SCALE_IMBALANCE: negative_nll / positive_nll.clamp(min=0),
        names.POSITIVE_MASS: positive_mass,
        names.NEGATIVE_MASS: negative_mass,
        names.BALANCE: positive_mass - negative_mass,
        names.POSITIVE_SHARE: (advantages_R > 0).double().mean(),
        names.NEGATIVE_SHARE: (advantages_R < 0).double().mean(),
        names.LARGEST_INVERSE_NLL: torch.where(trains_R, inverse_R, -torch.inf).max(),
        names.SMALLEST_INVERSE_NLL: torch.where(trains_R, inverse_R, torch.inf).min(),
    }


def _gradient_masses(batch: Responses, token_gradients_N: Tensor, temperature: float) -> dict[str, Tensor]:
    uncertainty_N = -torch.expm1(batch.logprobs_N.double().clamp(max=0))
    mass_R = batch.sum_per_response(token_gradients_N.double().abs() * uncertainty_N) * (2 / temperature)
    positive_mass = torch.where(batch.advantages_R > 0, mass_R, 0).sum()
    negative_mass = torch.where(batch.advantages_R < 0, mass_R, 0).sum()
    return {
        names.POSITIVE_GRADIENT_MASS: positive_mass,
        names.NEGATIVE_GRADIENT_MASS: negative_mass,
        names.GRADIENT_IMBALANCE: negative_mass / positive_mass,
    }


def _drift(batch: Responses, behavior_logprobs_N: Tensor) -> dict[str, Tensor]:
    difference_N = batch.logprobs_N.double() - behavior_logprobs_N.double()
    log_ratio_N = difference_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).sort().values
    ratio_N = log_ratio_N.exp()
    last = len(ratio_N) - 1
    log_weight_R = torch.where(batch.lengths_R > 0, batch.sum_per_response(difference_N), -torch.inf)
    return {
        names.RATIO_MEAN: ratio_N.mean(),
        names.RATIO_MIN: ratio_N[0],
        names.RATIO_MAX: ratio_N[last],
        names.RATIO_P05: ratio_N[round(0.05 * last)],
        names.RATIO_P50: ratio_N[round(0.5 * last)],
        names.RATIO_P95: ratio_N[round(0.95 * last)],
        names.BEHAVIOR_KL: (torch.expm1(log_ratio_N) - log_ratio_N).mean(),
        names.EFFECTIVE_SAMPLE_SIZE: _effective_share(log_ratio_N),
        names.SEQUENCE_EFFECTIVE_SAMPLE_SIZE: _effective_share(log_weight_R),
    }


def _effective_share(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2) of the weights, whatever their scale; a weight of 0 (-inf) is not one of the n."""
    weights = (log_weights - log_weights.max()).exp()
    return weights.sum().square() / weights.square().sum() / (log_weights > -torch.inf).sum()
