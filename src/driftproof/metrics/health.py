"""What to plot when the loss says nothing: how hard positive and negative responses pull, and how far data has drifted.

`step_health` turns the responses of an optimizer step into these figures. Names are stable, every value is finite, and
a figure without data (no negatives, say, or no behavior log-probs) is left out.

| name | meaning |
|---|---|
| `health/nll` | mean over responses of S, the mean token NLL under the current policy (nats) |
| `health/positive_nll` | S of the responses with A > 0, weighted by A (paper: S_P) |
| `health/negative_nll` | S of the responses with A < 0, weighted by abs A (paper: S_N) |
| `health/scale_imbalance` | negative_nll / positive_nll; it rises before a naive run collapses |
| `health/positive_mass`, `health/negative_mass` | sum of abs A times S over the sign's responses, over all responses |
| `health/balance` | positive_mass - negative_mass: the naive loss |
| `health/positive_share`, `health/negative_share` | share of responses with A > 0, with A < 0 |
| `health/largest_inverse_nll` | largest 1/S among responses that train: ASymPO's largest weight before its floor |
| `health/smallest_inverse_nll` | smallest 1/S among them |
| `health/entropy` | mean token entropy of the current policy (nats), where computed |
| `health/positive_gradient_mass`, `health/negative_gradient_mass` | L1 norm of the loss's gradient by the logits |
| `health/gradient_imbalance` | negative_gradient_mass / positive_gradient_mass |
| `health/ratio_mean`, `health/ratio_min`, `health/ratio_max` | rho = current / behavior probability, over tokens |
| `health/ratio_p05`, `health/ratio_p50`, `health/ratio_p95` | its percentiles (the token of the nearest rank) |
| `health/behavior_kl` | mean of rho - 1 - log rho over tokens: estimates KL(behavior, current) per token (nats) |
| `health/effective_sample_size` | (sum rho)^2 / (N sum rho^2) over the N tokens: 1 without drift, 1/N at worst |
| `health/sequence_effective_sample_size` | the same over responses, with the product of rho over each |

A response trains if it has tokens and an advantage that is not 0. log rho is clamped to +-20, except in the products.

The gradient mass sums abs(dL/dlog p) 2 (1 - p) / temperature over the tokens of the responses with A > 0, and of those
with A < 0: the gradient of log p by the logits (after soft-capping) is (onehot - softmax) / temperature. What a KL term
adds to dL/dlog p is counted, an entropy bonus is not. 1 - p <= -log p, so ASymPO's mass is at most 2 sum abs A / R.

Source: arXiv 2606.03070, Eq. 3 and Theorems 3-4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from driftproof.objectives import Responses
from driftproof.objectives.objective import MAX_LOG_RATIO

SMALLEST_NLL = 1e-12
"""Nats; a response of smaller mean NLL counts as this in 1/S, so that it is finite."""


@torch.no_grad()
def step_health(
    batch: Responses, token_gradients_N: Tensor | None = None, *, temperature: float = 1.0
) -> dict[str, float]:
    """The table above for the responses of a step; what is computed on a device is fetched at once.

    Args:
        batch: whole responses, of the whole step; `entropy_N` and `behavior_logprobs_N` are used where they are there.
        token_gradients_N: [N], the derivative of the step's loss by each token's log-prob.
        temperature: that of the log-probs, which are those of softmax(logits / temperature).

    Raises:
        ValueError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; the gradient by the logits needs a positive one")
    if not len(batch.lengths_R):
        return {}
    figures = _scales(batch)
    if batch.entropy_N is not None:
        figures["entropy"] = batch.entropy_N.double().mean()
    if token_gradients_N is not None:
        figures |= _gradient_masses(batch, token_gradients_N, temperature)
    if batch.behavior_logprobs_N is not None and len(batch.logprobs_N):
        figures |= _drift(batch, batch.behavior_logprobs_N)
    values = torch.stack(list(figures.values())).tolist()
    # What has no data is 0 / 0, or the extreme of nothing.
    return {f"health/{name}": value for name, value in zip(figures, values, strict=True) if math.isfinite(value)}


def _scales(batch: Responses) -> dict[str, Tensor]:
    nll_R = -batch.mean_per_response(batch.logprobs_N.double())
    advantages_R = batch.advantages_R.double()
    positive_R, negative_R = advantages_R.clamp(min=0), (-advantages_R).clamp(min=0)
    positive_mass, negative_mass = (positive_R * nll_R).mean(), (negative_R * nll_R).mean()
    positive_nll, negative_nll = positive_mass / positive_R.mean(), negative_mass / negative_R.mean()
    inverse_R = 1 / nll_R.clamp(min=SMALLEST_NLL)
    trains_R = (advantages_R != 0) & (batch.lengths_R > 0)
    return {
        "nll": nll_R.mean(),
        "positive_nll": positive_nll,
        "negative_nll": negative_nll,
        "scale_imbalance": negative_nll / positive_nll.clamp(min=0),
        "positive_mass": positive_mass,
        "negative_mass": negative_mass,
        "balance": positive_mass - negative_mass,
        "positive_share": (advantages_R > 0).double().mean(),
        "negative_share": (advantages_R < 0).double().mean(),
        "largest_inverse_nll": torch.where(trains_R, inverse_R, -torch.inf).max(),
        "smallest_inverse_nll": torch.where(trains_R, inverse_R, torch.inf).min(),
    }


def _gradient_masses(batch: Responses, token_gradients_N: Tensor, temperature: float) -> dict[str, Tensor]:
    uncertainty_N = -torch.expm1(batch.logprobs_N.double().clamp(max=0))
    mass_R = batch.sum_per_response(token_gradients_N.double().abs() * uncertainty_N) * (2 / temperature)
    positive_mass = torch.where(batch.advantages_R > 0, mass_R, 0).sum()
    negative_mass = torch.where(batch.advantages_R < 0, mass_R, 0).sum()
    return {
        "positive_gradient_mass": positive_mass,
        "negative_gradient_mass": negative_mass,
        "gradient_imbalance": negative_mass / positive_mass,
    }


def _drift(batch: Responses, behavior_logprobs_N: Tensor) -> dict[str, Tensor]:
    difference_N = batch.logprobs_N.double() - behavior_logprobs_N.double()
    log_ratio_N = difference_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).sort().values
    ratio_N = log_ratio_N.exp()
    last = len(ratio_N) - 1
    log_weight_R = torch.where(batch.lengths_R > 0, batch.sum_per_response(difference_N), -torch.inf)
    return {
        "ratio_mean": ratio_N.mean(),
        "ratio_min": ratio_N[0],
        "ratio_max": ratio_N[last],
        "ratio_p05": ratio_N[round(0.05 * last)],
        "ratio_p50": ratio_N[round(0.5 * last)],
        "ratio_p95": ratio_N[round(0.95 * last)],
        "behavior_kl": (torch.expm1(log_ratio_N) - log_ratio_N).mean(),
        "effective_sample_size": _effective_share(log_ratio_N),
        "sequence_effective_sample_size": _effective_share(log_weight_R),
    }


def _effective_share(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2) of the weights, whatever their scale; a weight of 0 (-inf) is not one of the n."""
    weights = (log_weights - log_weights.max()).exp()
    return weights.sum().square() / weights.square().sum() / (log_weights > -torch.inf).sum()
