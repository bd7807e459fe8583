"""What to plot when the loss says nothing: the scales on which positive and negative responses pull.

`health_sums` of the parts of an optimizer step add up; `health_metrics` turns the step's sums into these names:

| name | meaning |
|---|---|
| `health/nll` | mean over responses of S, the mean token NLL under the current policy (nats) |
| `health/positive_nll` | S of the responses with A > 0, weighted by A (paper: S_P) |
| `health/negative_nll` | S of the responses with A < 0, weighted by abs A (paper: S_N) |
| `health/scale_imbalance` | negative_nll / positive_nll; it rises before a naive run collapses |
| `health/balance` | sum of A S over responses, over their number: the naive loss |
| `health/positive_share`, `health/negative_share` | share of responses with A > 0, with A < 0 |
| `health/largest_inverse_nll` | largest 1/S among responses that train: ASymPO's largest weight before its floor |
| `health/entropy` | mean token entropy of the current policy (nats), where computed |

Source: arXiv 2606.03070, Eq. 3 and Theorems 3-4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from driftproof.objectives import Responses

HealthSums = dict[str, Tensor]


@torch.no_grad()
def health_sums(batch: Responses, entropy_N: Tensor | None = None) -> HealthSums:
    """Additive float64 scalars of one part of a step (`largest_inverse_nll` is combined by maximum)."""
    nll_R = -batch.mean_per_response(batch.logprobs_N.detach().double())
    advantages_R = batch.advantages_R.double()
    positive_R, negative_R = advantages_R.clamp(min=0), (-advantages_R).clamp(min=0)
    trained_R = (advantages_R != 0) & (batch.lengths_R > 0)
    inverse_R = torch.where(trained_R, 1 / nll_R.clamp(min=1e-12), 0)
    zero = nll_R.new_zeros(())
    return {
        "responses": zero + len(nll_R),
        "nll": nll_R.sum(),
        "positive_advantage": positive_R.sum(),
        "negative_advantage": negative_R.sum(),
        "positive_mass": (positive_R * nll_R).sum(),
        "negative_mass": (negative_R * nll_R).sum(),
        "positive_count": (positive_R > 0).sum().double(),
        "negative_count": (negative_R > 0).sum().double(),
        "largest_inverse_nll": inverse_R.max() if len(inverse_R) else zero,
        "entropy": zero if entropy_N is None else entropy_N.double().sum(),
        "entropy_tokens": zero if entropy_N is None else zero + len(entropy_N),
    }


def add_sums(left: HealthSums, right: HealthSums) -> HealthSums:
    """The sums of two parts taken together."""
    return {
        name: torch.maximum(left[name], right[name]) if name == "largest_inverse_nll" else left[name] + right[name]
        for name in left
    }


def health_metrics(sums: HealthSums) -> dict[str, float]:
    """The table above from a step's sums; a figure that has no data (no negatives, say) is left out."""
    value = {name: float(tensor) for name, tensor in sums.items()}
    responses = max(value["responses"], 1)
    metrics = {
        "health/nll": value["nll"] / responses,
        "health/balance": (value["positive_mass"] - value["negative_mass"]) / responses,
        "health/positive_share": value["positive_count"] / responses,
        "health/negative_share": value["negative_count"] / responses,
        "health/largest_inverse_nll": value["largest_inverse_nll"],
    }
    if value["positive_advantage"] > 0:
        metrics["health/positive_nll"] = value["positive_mass"] / value["positive_advantage"]
    if value["negative_advantage"] > 0:
        metrics["health/negative_nll"] = value["negative_mass"] / value["negative_advantage"]
    if metrics.get("health/positive_nll", 0) > 0 and "health/negative_nll" in metrics:
        metrics["health/scale_imbalance"] = metrics["health/negative_nll"] / metrics["health/positive_nll"]
    if value["entropy_tokens"] > 0:
        metrics["health/entropy"] = value["entropy"] / value["entropy_tokens"]
    return metrics
