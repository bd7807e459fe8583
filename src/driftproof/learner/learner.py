"""One step from one batch of groups, and all that is needed to repeat it.

Guarantees: the learner's state before a step, together with the batch, determines its state after it.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from driftproof.errors import GroupError, ObjectiveError
from driftproof.learner.flat_batch import FlatBatch
from driftproof.learner.packing import MicroBatch, pack
from driftproof.learner.policy import Policy
from driftproof.learner.settings import LearnerSettings
from driftproof.learner.skipped import Skipped
from driftproof.learner.update import backward, score
from driftproof.logprobs import TokenValues
from driftproof.metrics import names
from driftproof.metrics.health import read_figures, step_health
from driftproof.metrics.steps import mean_metrics, reward_metrics
from driftproof.objectives import Objective
from driftproof.types import Baseline, Batch, Channel, Group
from driftproof.weights.models import checkpoint_activations


@dataclass(eq=False, repr=False)
class Learner:
    """A policy, an objective and an optimizer.

    Raises:
        ObjectiveError: the objective needs a reference policy or a value head, and there is none.
    """

    policy: Policy
    objective: Objective
    settings: LearnerSettings
    _: KW_ONLY
    steps: int
    """Steps of the run, along which the learning rate falls."""
    baseline: Baseline = "mean"
    reference: Policy | None = None
    """Policy that a KL term pulls to."""
    fused: bool = True
    """Which of the two paths of `backward` is taken."""
    step: int = field(default=0, init=False)
    skipped: tuple[Skipped, ...] = field(default=(), init=False)
    """The updates of the last step that were not made."""

    def __post_init__(self) -> None:
        policy, objective, settings = self.policy, self.objective, self.settings
        if Channel.REFERENCE_LOGPROBS in objective.needs and self.reference is None:
            raise ObjectiveError(f"objective {objective.name!r} has a KL term; it needs a reference policy")
        if Channel.VALUES in objective.needs and policy.value_head is None:
            raise ObjectiveError(f"objective {objective.name!r} needs a policy with a value head")
        self.optimizer = torch.optim.AdamW(
            policy.trained_parameters().values(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        if settings.gradient_checkpointing:
            checkpoint_activations(policy.model)

    def train(self, batch: Batch) -> dict[str, float]:
        """One step; its metrics, which are means where a step has several updates.

        An update whose loss or gradient is not finite leaves weights and optimizer as they are, bit for bit; `skipped`
        is the share of such updates, and the attribute of that name says which groups they were made of.
        """
        lr = self.settings.lr_at(batch.step, self.steps)
        for parameter_group in self.optimizer.param_groups:
            parameter_group["lr"] = lr
        updates = split_updates(batch.groups, self.settings.updates_per_step)
        device = self.policy.device
        flats = [FlatBatch.of(groups, self.baseline, device, self._fixed_channels(groups)) for groups in updates]
        self.skipped = ()
        metrics, first = [], 0
        for groups, flat in zip(updates, flats, strict=True):
            metrics.append(self._update(groups, flat, first))
            first += len(groups)
        self.step = batch.step
        of_updates = metrics[0] if len(metrics) == 1 else mean_metrics(metrics)
        return {**of_updates, names.LR: lr, **reward_metrics(batch)}

    def _update(self, groups: Sequence[Group], flat: FlatBatch, first: int) -> dict[str, float]:
        """One update with the groups of a step from the `first` on."""
        update = backward(self.policy, self.objective, self.pack(groups), flat, fused=self.fused)
        parameters = self.policy.trained_parameters().values()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        # Everything that the host wants to know, in one wait for the device.
        metrics = read_figures({**update.figures(self.policy.temperature), names.GRAD_NORM: norm})
        loss, grad_norm = metrics[names.LOSS], metrics[names.GRAD_NORM]
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            self.optimizer.step()
        else:
            found = Skipped.of(groups, update.not_finite_R.tolist(), first=first, loss=loss, grad_norm=grad_norm)
            self.skipped += (found,)
        self.optimizer.zero_grad()
        return {**metrics, names.SKIPPED: float(not finite)}

    @property
    def finite(self) -> bool:
        """Whether every weight is a finite number."""
        parameters = [parameter.detach() for parameter in self.policy.trained_parameters().values()]
        return math.isfinite(torch.nn.utils.get_total_norm(parameters, norm_type=math.inf))

    def _fixed_channels(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """The values that the objective needs of the policy before the step, and of the reference policy."""
        needs, channels = self.objective.needs, dict[str, Tensor]()
        # Before its only update the policy is the proximal one.
        if self.settings.updates_per_step > 1 and needs & {Channel.PROXIMAL_LOGPROBS, Channel.VALUES}:
            before = self.score(groups)
            channels["proximal_logprobs_N"] = before.logprobs_N
            if before.values_N is not None:
                channels["old_values_N"] = before.values_N
        if self.reference is not None and Channel.REFERENCE_LOGPROBS in needs:
            channels["reference_logprobs_N"] = self.score(groups, self.reference).logprobs_N
        return channels

    def score(self, groups: Sequence[Group], policy: Policy | None = None) -> TokenValues:
        """The policy's values of the trained tokens of `groups`, in their order, without gradient."""
        tokens = sum(int(group.trained_lengths.sum()) for group in groups)
        return score(policy or self.policy, self.pack(groups), tokens)

    @torch.no_grad()
    def nll_by_sign(self, groups: Sequence[Group]) -> dict[str, float]:
        """The health metrics of `groups`, untrained: mean token NLL of positive and negative responses; {} for none."""
        if not groups:
            return {}
        flat = FlatBatch.of(groups, self.baseline, self.policy.device)
        return step_health(flat.part(self.score(groups)))

    def pack(self, groups: Sequence[Group]) -> list[MicroBatch]:
        """The micro-batches of groups, on the policy's device."""
        largest = max((int(group.response_tokens.max(initial=0)) for group in groups), default=0)
        if largest >= self.policy.vocabulary:
            raise GroupError(f"a group has the token {largest}; the model's vocabulary has {self.policy.vocabulary}")
        packed = pack(
            groups,
            token_budget=self.settings.positions,
            row_tokens=self.settings.row_tokens,
            share_prompts=self.policy.can_share_prompts(groups),
        )
        return [micro_batch.to(self.policy.device) for micro_batch in packed]


def split_updates(groups: Sequence[Group], updates: int) -> list[Sequence[Group]]:
    """Consecutive groups for each update, as equal in number as can be."""
    cuts = [round(len(groups) * update / updates) for update in range(updates + 1)]
    return [groups[start:end] for start, end in pairwise(cuts) if start < end]
