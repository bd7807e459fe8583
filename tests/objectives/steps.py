"""Optimizer steps of random tokens in float64, to be cut, ordered, padded and written out at will."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from driftproof.objectives import Objective, Responses
from driftproof.objectives.advantages import group_advantages

LEAVES = ("logprobs", "entropy", "values")
"""The channels that objectives have gradients in."""


class Result(NamedTuple):
    """What an objective says about a step."""

    loss: Tensor
    gradient: Tensor
    """[3, N]: in the log-probs, the entropies and the values."""
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Written:
    """One response in plain numbers; a channel is a list of one number per token."""

    advantage: float
    reward: float
    logprobs: list[float]
    behavior_logprobs: list[float]
    proximal_logprobs: list[float]
    reference_logprobs: list[float]
    entropy: list[float]
    values: list[float]
    old_values: list[float]

    @property
    def ratios(self) -> list[float]:
        return [math.exp(new - old) for new, old in zip(self.logprobs, self.behavior_logprobs, strict=True)]


CHANNELS = tuple(field.name for field in fields(Written))[2:]


@dataclass(frozen=True)
class Step:
    """R responses; the tokens of all lie one behind the other in each channel, [N]."""

    channels: dict[str, Tensor]
    lengths_R: Tensor
    rewards_R: Tensor
    advantages_R: Tensor
    group_R: Tensor

    @property
    def size(self) -> int:
        return len(self.lengths_R)

    @property
    def tokens(self) -> int:
        return int(self.lengths_R.sum())

    @property
    def valid_responses(self) -> int:
        """Responses in groups that have a response with an advantage."""
        pairs = list(zip(self.group_R.tolist(), self.advantages_R.tolist(), strict=True))
        teaching = {group for group, advantage in pairs if advantage != 0}
        return sum(group in teaching for group, _ in pairs)

    @property
    def nonzero_rewards(self) -> int:
        return sum(reward != 0 and not math.isnan(reward) for reward in self.rewards_R.tolist())

    def places(self, number: int) -> Tensor:
        """int64 [m]: where the response's tokens lie."""
        end = int(self.lengths_R[: number + 1].sum())
        return torch.arange(end - int(self.lengths_R[number]), end)

    def leaves(self) -> dict[str, Tensor]:
        return {name: self.channels[name].clone().requires_grad_() for name in LEAVES}

    def part(
        self,
        leaves: dict[str, Tensor],
        numbers: Sequence[int],
        held_N: Tensor | None = None,
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> Responses:
        """The responses of these numbers, in this order; of their tokens those that are `held_N`, by default all."""
        numbers_R = torch.tensor(list(numbers), dtype=torch.int64)
        places = [self.places(number) for number in numbers]
        if held_N is not None:
            places = [where[held_N[where]] for where in places]
        lengths_R = torch.tensor([len(where) for where in places], dtype=torch.int64)
        places_N = torch.cat([torch.empty(0, dtype=torch.int64), *places])
        channels = {name: values[places_N] for name, values in (self.channels | leaves).items()}
        return Responses(
            segment_N=torch.arange(len(numbers)).repeat_interleave(lengths_R),
            lengths_R=self.lengths_R[numbers_R],
            rewards_R=self.rewards_R[numbers_R],
            advantages_R=self.advantages_R[numbers_R],
            group_R=self.group_R[numbers_R],
            total_responses=self.size,
            total_tokens=self.tokens,
            total_valid_responses=self.valid_responses,
            total_nonzero_rewards=self.nonzero_rewards,
            sum_over_ranks=sum_over_ranks,
            **{f"{name}_N": values for name, values in channels.items()},
        )

    def whole(self, leaves: dict[str, Tensor]) -> Responses:
        return self.part(leaves, range(self.size))

    def only(self, numbers: Sequence[int]) -> Step:
        """The step of these responses alone, their advantages as they are."""
        places_N = torch.cat([torch.empty(0, dtype=torch.int64), *(self.places(number) for number in numbers)])
        chosen_R = torch.tensor(list(numbers), dtype=torch.int64)
        return Step(
            {name: values[places_N] for name, values in self.channels.items()},
            *(whole[chosen_R] for whole in (self.lengths_R, self.rewards_R, self.advantages_R, self.group_R)),
        )

    def with_channels(self, **channels: Tensor) -> Step:
        return replace(self, channels=self.channels | channels)

    def on_policy(self) -> Step:
        return self.with_channels(behavior_logprobs=self.channels["logprobs"])

    def float32(self) -> Step:
        channels = {name: values.float() for name, values in self.channels.items()}
        return replace(
            self, channels=channels, rewards_R=self.rewards_R.float(), advantages_R=self.advantages_R.float()
        )

    def written(self) -> list[Written]:
        return [
            Written(
                advantage=self.advantages_R[number].item(),
                reward=self.rewards_R[number].item(),
                **{name: self.channels[name][self.places(number)].tolist() for name in CHANNELS},
            )
            for number in range(self.size)
        ]

    def nll_R(self, logprobs_N: Tensor) -> Tensor:
        """[R] mean token NLL, with gradient; no response may be empty."""
        return torch.stack([-logprobs_N[self.places(number)].mean() for number in range(self.size)])


def evaluate(step: Step, objective: Objective, parts: Sequence[Sequence[int]] | None = None) -> Result:
    """Loss, gradient and metrics, each summed over parts."""
    leaves = step.leaves()
    loss = step.advantages_R.new_zeros(())
    metrics: dict[str, Tensor] = {}
    for numbers in parts or [range(step.size)]:
        output = objective(step.part(leaves, numbers))
        output.loss.backward()
        loss += output.loss.detach()
        metrics = {name: metrics.get(name, 0) + value for name, value in output.metrics.items()}
    return Result(loss, gradient(leaves), metrics)


def gradient(leaves: dict[str, Tensor]) -> Tensor:
    return torch.stack([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves.values()])


def assert_same(left: Result, right: Result, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(left.loss, right.loss, rtol=rtol, atol=atol)
    torch.testing.assert_close(left.gradient, right.gradient, rtol=rtol, atol=atol)
    assert left.metrics.keys() == right.metrics.keys()
    for name in left.metrics:
        assert math.isclose(left.metrics[name], right.metrics[name], rel_tol=1e-5, abs_tol=1e-6), name


def make_step(lengths: Sequence[int], rewards: Sequence[float], groups: Sequence[int], seed: int = 0) -> Step:
    """Every response was drawn by a policy of its own distance from the current one."""
    generator = np.random.default_rng(seed)
    tokens = sum(lengths)
    logprobs_N = -generator.exponential(1.0, tokens) - 1e-6
    distance_N = np.repeat(generator.choice([0.0, 3e-4, 0.1, 0.5, 2.0], len(lengths)), lengths)

    def near(distance: np.ndarray | float) -> np.ndarray:
        return np.minimum(logprobs_N + distance * generator.normal(size=tokens), -1e-7)

    values_N = generator.normal(size=tokens)
    channels = {
        "logprobs": logprobs_N,
        "behavior_logprobs": near(distance_N),
        "proximal_logprobs": near(0.1),
        "reference_logprobs": near(0.5),
        "entropy": generator.exponential(1.0, tokens),
        "values": values_N,
        "old_values": values_N + 0.3 * generator.normal(size=tokens),
    }
    rewards_R = torch.tensor(rewards, dtype=torch.float64)
    group_R = torch.tensor(groups, dtype=torch.int64)
    return Step(
        {name: torch.from_numpy(values) for name, values in channels.items()},
        torch.tensor(lengths, dtype=torch.int64),
        rewards_R,
        group_advantages(rewards_R, group_R),
        group_R,
    )


def a_step(seed: int = 0) -> Step:
    """Twelve responses in three groups, with empty ones, single tokens, a missing reward and a group of equal ones."""
    lengths = [3, 0, 5, 1, 4, 2, 1, 6, 2, 3, 0, 1]
    rewards = [1.0, 0.0, 0.0, 1.0, 0.1, -2.5, math.nan, 1.0, 1.0, 1.0, 1.0, 1.0]
    return make_step(lengths, rewards, [0] * 4 + [1] * 4 + [2] * 4, seed)


@st.composite
def steps(draw: st.DrawFn, shortest: int = 0, longest: int = 5) -> Step:
    """1 to 3 groups of 1 to 4 responses."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    lengths = draw(st.lists(st.integers(shortest, longest), min_size=sum(sizes), max_size=sum(sizes)))
    rewards = draw(st.lists(st.sampled_from([0.0, 1.0, 0.1, -2.5, math.nan]), min_size=sum(sizes), max_size=sum(sizes)))
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    return make_step(lengths, rewards, groups, draw(st.integers(0, 2**32 - 1)))


def one_token(
    objective: Objective, ratio: float, advantage: float, mu: float = math.exp(-30.0)
) -> tuple[float, float, dict[str, float]]:
    """Loss, its derivative in log pi, and the metrics of one token of the given ratio."""
    behavior = torch.tensor([[math.log(mu)]], dtype=torch.float64)
    logprob = (behavior + math.log(ratio)).requires_grad_()
    advantages_R = torch.tensor([advantage], dtype=torch.float64)
    output = objective(Responses.from_padded(logprob, torch.ones(1, 1), advantages_R, behavior))
    output.loss.backward()
    assert logprob.grad is not None
    return output.loss.item(), logprob.grad.item(), {name: value.item() for name, value in output.metrics.items()}
