"""Optimizer steps of random log-probs in float64, to be cut and ordered at will."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from driftproof.advantages import group_advantages
from driftproof.objectives import Objective, Responses

Gradient = tuple[Tensor, Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Step:
    """R responses; token log-probs of the current and of the behavior policy."""

    logprobs: list[Tensor]
    behavior: list[Tensor]
    advantages_R: Tensor
    group_R: Tensor

    @property
    def size(self) -> int:
        return len(self.logprobs)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.logprobs))

    def leaves(self) -> list[Tensor]:
        return [values.clone().requires_grad_() for values in self.logprobs]

    def part(self, leaves: Sequence[Tensor], numbers: Sequence[int]) -> Responses:
        """The responses of these numbers, in this order, as a part of the step."""
        lengths_R = torch.tensor([len(leaves[n]) for n in numbers], dtype=torch.int64)
        return Responses(
            logprobs_N=torch.cat([leaves[n] for n in numbers]),
            segment_N=torch.arange(len(numbers)).repeat_interleave(lengths_R),
            lengths_R=lengths_R,
            advantages_R=self.advantages_R[list(numbers)],
            group_R=self.group_R[list(numbers)],
            total_responses=self.size,
            total_tokens=self.tokens,
            behavior_logprobs_N=torch.cat([self.behavior[n] for n in numbers]),
        )

    def whole(self, leaves: Sequence[Tensor]) -> Responses:
        return self.part(leaves, range(self.size))

    def nll_R(self) -> Tensor:
        return torch.stack([-values.mean() for values in self.logprobs])


def evaluate(step: Step, objective: Objective, parts: Sequence[Sequence[int]] | None = None) -> Gradient:
    """Loss, gradient [N] in the order of the step, and metrics, all summed over parts."""
    leaves = step.leaves()
    loss = torch.zeros((), dtype=torch.float64)
    metrics: dict[str, Tensor] = {}
    for numbers in parts or [range(step.size)]:
        output = objective(step.part(leaves, numbers))
        output.loss.backward()
        loss += output.loss.detach()
        metrics = {name: metrics.get(name, 0) + value for name, value in output.metrics.items()}
    return loss, gradient(leaves), metrics


def gradient(leaves: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])


def make_step(lengths: Sequence[int], rewards: Sequence[float], groups: Sequence[int], seed: int = 0) -> Step:
    generator = np.random.default_rng(seed)

    def draw() -> list[Tensor]:
        return [torch.from_numpy(-generator.exponential(1.0, length) - 1e-6) for length in lengths]

    group_R = torch.tensor(groups)
    return Step(draw(), draw(), group_advantages(torch.tensor(rewards, dtype=torch.float64), group_R), group_R)


@st.composite
def steps(draw: st.DrawFn, shortest: int = 0) -> Step:
    """1 to 3 groups of 1 to 4 responses of up to 5 tokens."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    lengths = draw(st.lists(st.integers(shortest, 5), min_size=sum(sizes), max_size=sum(sizes)))
    rewards = draw(st.lists(st.sampled_from([0.0, 1.0, 0.1, -2.5]), min_size=sum(sizes), max_size=sum(sizes)))
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    return make_step(lengths, rewards, groups, draw(st.integers(0, 2**32 - 1)))
