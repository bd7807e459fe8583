"""One optimizer step from one batch of groups, and all that is needed to repeat it.

Guarantees: the gradient is that of the whole batch, however it is cut into micro-batches; the learner's state before a
step, together with the batch, determines its state after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from driftproof.advantages import Baseline, group_advantages
from driftproof.health import HealthSums, add_sums, health_metrics, health_sums
from driftproof.learner.packing import MicroBatch, pack
from driftproof.learner.policy import Policy
from driftproof.objectives import Objective, Responses
from driftproof.types import Batch, Group, GroupError

Schedule = Literal["constant", "cosine", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """How the weights move: AdamW, clipped gradients, a learning rate that follows a schedule."""

    lr: float
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """After the warm-up: stay, or fall along a cosine or a line, which reach 0 one step after `steps`."""
    warmup_steps: int = 0
    steps: int
    """Steps of the whole run."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def lr_at(self, step: int) -> float:
        """Learning rate of `step`, 1-based."""
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        progress = min((step - 1 - self.warmup_steps) / max(self.steps - self.warmup_steps, 1), 1.0)
        return self.lr * (0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How a batch is cut to fit."""

    token_budget: int = 16384
    """Positions of a micro-batch, padding included."""
    row_tokens: int = 512
    """Responses of a group share one copy of their prompt while a row stays within so many tokens."""
    gradient_checkpointing: bool = False


class Learner:
    """A policy, an objective and an optimizer."""

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        optimization: Optimization,
        memory: Memory,
        baseline: Baseline = "mean",
        want_entropy: bool = True,
    ) -> None:
        self.policy = policy
        self.objective = objective
        self.optimization = optimization
        self.memory = memory
        self.baseline = baseline
        self.want_entropy = want_entropy
        self.step = 0
        self.optimizer = torch.optim.AdamW(
            policy.model.parameters(),
            lr=optimization.lr,
            betas=optimization.betas,
            weight_decay=optimization.weight_decay,
            fused=True,
        )
        if memory.gradient_checkpointing:
            policy.model.activation_checkpointing_enable({"use_reentrant": False})
            for module in policy.model.modules():
                # A layer recomputes in train mode only; what is inside it stays in eval mode, without dropout.
                if getattr(module, "gradient_checkpointing", False):
                    module.training = True

    def train(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; its metrics.

        A step whose gradient is not finite leaves the weights as they are and says `skipped` 1.
        """
        loss, objective_metrics, health = self._backward(batch)
        lr = self.optimization.lr_at(batch.step)
        for parameter_group in self.optimizer.param_groups:
            parameter_group["lr"] = lr
        grad_norm = float(
            torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.optimization.max_grad_norm)
        )
        finite = math.isfinite(grad_norm)
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step = batch.step
        return {
            "loss": loss,
            "grad_norm": grad_norm,
            "skipped": float(not finite),
            "lr": lr,
            **{f"objective/{name}": value for name, value in objective_metrics.items()},
            **health,
            **reward_metrics(batch),
        }

    def _backward(self, batch: Batch) -> tuple[float, dict[str, float], dict[str, float]]:
        flat = FlatBatch.of(batch.groups, self.baseline, self.policy.device)
        loss = 0.0
        metrics: dict[str, Tensor] = {}
        health: list[HealthSums] = []
        for micro_batch in self.pack(batch.groups):
            scored = self.policy.score(micro_batch, want_entropy=self.want_entropy)
            responses = flat.part(micro_batch, scored.logprobs_N)
            output = self.objective(responses)
            output.loss.backward()
            loss += float(output.loss.detach())
            metrics = {name: metrics.get(name, 0) + value for name, value in output.metrics.items()}
            health.append(health_sums(responses, scored.entropy_N))
        return loss, {name: float(value) for name, value in metrics.items()}, health_metrics(reduce(add_sums, health))

    @torch.no_grad()
    def nll_by_sign(self, groups: Iterable[Group]) -> dict[str, float]:
        """The health metrics of `groups`, untrained: mean token NLL of positive and negative responses; {} for none."""
        groups = list(groups)
        if not groups:
            return {}
        flat = FlatBatch.of(groups, self.baseline, self.policy.device)
        parts = [flat.part(micro_batch, self.policy.score(micro_batch).logprobs_N) for micro_batch in self.pack(groups)]
        return health_metrics(reduce(add_sums, map(health_sums, parts)))

    def pack(self, groups: Iterable[Group]) -> list[MicroBatch]:
        """The micro-batches of groups, on the policy's device."""
        packed = pack(
            list(groups),
            token_budget=self.memory.token_budget,
            row_tokens=self.memory.row_tokens,
            share_prompts=self.policy.share_prompts,
        )
        return [micro_batch.to(self.policy.device) for micro_batch in packed]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatBatch:
    """Advantages, groups and channels of a whole step, from which each micro-batch picks its part."""

    advantages_R: Tensor
    group_R: Tensor
    behavior_logprobs_N: Tensor | None
    total_responses: int
    total_tokens: int

    @classmethod
    def of(cls, groups: Iterable[Group], baseline: Baseline, device: torch.device) -> FlatBatch:
        groups = list(groups)
        rewards_R = torch.cat([torch.from_numpy(group.rewards.copy()) for group in groups])
        group_R = torch.arange(len(groups)).repeat_interleave(torch.tensor([group.size for group in groups]))
        logprobs = [torch.from_numpy(g.behavior_logprobs.copy()) for g in groups if g.behavior_logprobs is not None]
        if len(logprobs) not in (0, len(groups)):
            raise GroupError(f"{len(logprobs)} of the step's {len(groups)} groups carry behavior_logprobs")
        return cls(
            advantages_R=group_advantages(rewards_R, group_R, baseline).float().to(device),
            group_R=group_R.to(device),
            behavior_logprobs_N=torch.cat(logprobs).to(device) if logprobs else None,
            total_responses=len(rewards_R),
            total_tokens=sum(len(group.response_tokens) for group in groups),
        )

    def part(self, micro_batch: MicroBatch, logprobs_N: Tensor) -> Responses:
        """The responses of a micro-batch, with the counts of the whole step."""
        responses = torch.arange(len(micro_batch.lengths_R), device=logprobs_N.device)
        behavior = self.behavior_logprobs_N
        return Responses(
            logprobs_N=logprobs_N,
            segment_N=responses.repeat_interleave(micro_batch.lengths_R),
            lengths_R=micro_batch.lengths_R,
            advantages_R=self.advantages_R[micro_batch.responses_R],
            group_R=self.group_R[micro_batch.responses_R],
            total_responses=self.total_responses,
            total_tokens=self.total_tokens,
            behavior_logprobs_N=None if behavior is None else behavior[micro_batch.tokens_N],
        )


def reward_metrics(batch: Batch) -> dict[str, Any]:
    """What a batch says about the rollout side: rewards, ages, lengths, groups that teach nothing."""
    import numpy as np

    rewards = [group.rewards[np.isfinite(group.rewards)] for group in batch.groups]
    given = np.concatenate(rewards)
    equal = sum(1 for reward in rewards if len(reward) == 0 or reward.min() == reward.max())
    return {
        "reward": float(given.mean()) if len(given) else 0.0,
        "age_mean": sum(batch.ages) / len(batch.ages),
        "age_max": max(batch.ages),
        "groups": len(batch.groups),
        "groups_of_equal_reward": equal,
        "responses": batch.responses,
        "responses_without_reward": batch.responses - len(given),
        "response_tokens": batch.tokens,
        "response_length": batch.tokens / max(batch.responses, 1),
        "truncated_share": sum(r == "length" for g in batch.groups for r in g.finish_reasons) / max(batch.responses, 1),
    }
