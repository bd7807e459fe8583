"""The groups of one optimizer update as flat tensors, from which each micro-batch picks its part.

Responses and tokens are counted in the order of the groups, which is the order of everything [R] and [N] here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from driftproof.errors import GroupError
from driftproof.logprobs import TokenValues
from driftproof.objectives import Responses
from driftproof.objectives.advantages import group_advantages
from driftproof.objectives.responses import count_nonzero_rewards, count_valid_responses
from driftproof.types import Baseline, Group

EVERYTHING = slice(None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlatBatch:
    """Advantages, rewards, groups and channels of the R responses and N trained tokens of a whole update."""

    advantages_R: Tensor
    rewards_R: Tensor
    group_R: Tensor
    lengths_R: Tensor
    fixed: Mapping[str, Tensor]
    """Channels of policies that the update does not train, by their fields in `Responses`, float32 [N]. Proximal
    log-probs and old values are missing where the policy before the update is the one that gives them."""
    tokens: int
    valid_responses: int
    nonzero_rewards: int

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        baseline: Baseline,
        device: torch.device,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> Self:
        if any(group.sequence_of is not None for group in groups):
            raise GroupError("responses of several sequences (`sequence_of`) cannot be trained yet")
        rewards_R = torch.cat([torch.from_numpy(group.rewards.copy()) for group in groups])
        group_R = torch.arange(len(groups)).repeat_interleave(torch.tensor([group.size for group in groups]))
        lengths_R = torch.cat([torch.from_numpy(group.trained_lengths.copy()) for group in groups]).long()
        logprobs = [torch.from_numpy(g.behavior_logprobs.copy()) for g in groups if g.behavior_logprobs is not None]
        if len(logprobs) not in (0, len(groups)):
            raise GroupError(f"{len(logprobs)} of the step's {len(groups)} groups carry behavior_logprobs")
        behavior = {"behavior_logprobs_N": torch.cat(logprobs).to(device)} if logprobs else {}
        advantages_R = group_advantages(rewards_R, group_R, baseline)
        return cls(
            advantages_R=advantages_R.float().to(device),
            rewards_R=rewards_R.float().to(device),
            group_R=group_R.to(device),
            lengths_R=lengths_R.to(device),
            fixed=behavior | dict(fixed or {}),
            tokens=int(lengths_R.sum()),
            valid_responses=count_valid_responses(advantages_R, group_R),
            nonzero_rewards=count_nonzero_rewards(rewards_R),
        )

    def part(
        self, scored: TokenValues, responses: Tensor | slice = EVERYTHING, tokens: Tensor | slice = EVERYTHING
    ) -> Responses:
        """The chosen responses with what was scored of their tokens, and the counts of the whole update."""
        logprobs_N, lengths_R = scored.logprobs_N, self.lengths_R[responses]
        numbers_R = torch.arange(len(lengths_R), device=logprobs_N.device)
        fixed: dict[str, Any] = {name: channel_N[tokens] for name, channel_N in self.fixed.items()}
        return Responses(
            logprobs_N=logprobs_N,
            segment_N=numbers_R.repeat_interleave(lengths_R, output_size=len(logprobs_N)),
            lengths_R=lengths_R,
            advantages_R=self.advantages_R[responses],
            group_R=self.group_R[responses],
            rewards_R=self.rewards_R[responses],
            total_responses=len(self.lengths_R),
            total_tokens=self.tokens,
            total_valid_responses=self.valid_responses,
            total_nonzero_rewards=self.nonzero_rewards,
            entropy_N=scored.entropy_N,
            values_N=scored.values_N,
            **{"proximal_logprobs_N": logprobs_N.detach()} | fixed,
        )
