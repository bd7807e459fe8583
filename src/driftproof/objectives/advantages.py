"""Rewards to advantages: group by group, or token by token along a critic's values.

In a group, a response without a reward (NaN: its verification failed) is left out of the baseline and gets advantage 0.
"""

import torch
from torch import Tensor

from driftproof.types import Baseline


def group_advantages(rewards_R: Tensor, group_R: Tensor, baseline: Baseline = "mean") -> Tensor:
    """Advantages [R], in the dtype of the rewards.

    Args:
        rewards_R: [R] floating, NaN where a response has no reward.
        group_R: int64 [R], the group of each response, 0-based.
        baseline: see `types.Baseline`.

    A group of one reward, or of equal rewards, has advantages 0 throughout (a lone response under `leave-one-out` too).
    """
    given_R = ~rewards_R.isnan()
    groups = int(group_R.max()) + 1 if len(group_R) else 0
    # Counted from the group's lowest reward, equal rewards are exactly 0: their mean may be off by a rounding error.
    lowest = torch.full((groups,), torch.inf, dtype=rewards_R.dtype, device=rewards_R.device)
    lowest_R = lowest.scatter_reduce(0, group_R, torch.where(given_R, rewards_R, torch.inf), "amin")[group_R]
    rewards_R = torch.where(given_R, rewards_R - lowest_R, 0)

    def sum_per_group(values_R: Tensor) -> Tensor:
        return values_R.new_zeros(groups).index_add(0, group_R, values_R)[group_R]

    count_R = sum_per_group(given_R.to(rewards_R.dtype))
    centred_R = torch.where(given_R, rewards_R - sum_per_group(rewards_R) / count_R.clamp(min=1), 0)
    if baseline == "mean":
        return centred_R
    if baseline == "mean-std":
        deviation_R = (sum_per_group(centred_R.square()) / (count_R - 1).clamp(min=1)).sqrt()
        return centred_R / (deviation_R + 1e-6)
    if baseline == "leave-one-out":
        return centred_R * count_R / (count_R - 1).clamp(min=1)
    raise ValueError(f"unknown baseline {baseline!r}; valid: mean, mean-std, leave-one-out")


def token_advantages(
    rewards_R: Tensor, values_N: Tensor, lengths_R: Tensor, *, discount: float, gae_lambda: float
) -> Tensor:
    """Generalised advantage estimates [N] of the tokens of R responses that lie one behind the other.

    Args:
        rewards_R: [R], given at a response's last token; after it there is no value.
        values_N: [N], the critic's value before each token.
        lengths_R: int64 [R], tokens per response.
        discount, gae_lambda: gamma and lambda; lambda 1 is reward minus value.

    Source: arXiv 1506.02438, Eq. 16.
    """
    responses, longest = len(lengths_R), int(lengths_R.max()) if len(lengths_R) else 0
    # Responses end together, at the right: what stands before a short one is not read.
    positions_T = torch.arange(longest, device=values_N.device)
    inside_RT = positions_T >= longest - lengths_R[:, None]
    values_RT = values_N.new_zeros(responses, longest + 1)
    values_RT[:, :-1][inside_RT] = values_N
    deltas_RT = discount * values_RT[:, 1:] - values_RT[:, :-1]
    if longest:
        deltas_RT[:, -1] += rewards_R
    # A_t = delta_t + c A_{t+1}, by doubling: after each round a position holds the sum of twice as many deltas.
    advantages_RT, reach, weight = deltas_RT, 1, discount * gae_lambda
    while reach < longest:
        later_RT = torch.nn.functional.pad(advantages_RT[:, reach:], (0, reach))
        advantages_RT = advantages_RT + weight * later_RT
        reach, weight = 2 * reach, weight * weight
    return advantages_RT[inside_RT]
