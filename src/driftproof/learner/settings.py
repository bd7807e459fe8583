"""Settings of the learner, as a recipe's `[learner]` and `[advantages]` give them."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from driftproof.types import Baseline

MOST_POSITIONS = 16384
"""Positions of a micro-batch that `token_budget = "auto"` is at most; more do not make a step faster."""
ROWS_PER_MICRO_BATCH = 32
"""Full rows that a micro-batch has room for."""

Beta = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantagesSettings:
    """Turning the rewards of a group into advantages."""

    baseline: Baseline = "mean"
    """Part of a reward that its group explains: the mean, the mean with division by the deviation, or the mean of the
    other responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """The optimizer, the memory of a step, and the intervals of publishing and saving."""

    groups_per_step: Annotated[int, Ge(1)] = 16
    """Groups of one step, each a prompt with its responses; 8 to 512."""
    updates_per_step: Annotated[int, Ge(1)] = 1
    """Optimizer updates of one step, which share its groups equally; 1 to 8."""
    lr: Annotated[float, Gt(0)] = 1e-6
    """Peak learning rate of AdamW; 1e-7 to 1e-5 for pretrained models, up to 1e-2 for tiny ones."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up: it stays, or falls along a cosine or a line to 0 one step after the last."""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps in which the learning rate rises to its peak; 0 to a tenth of the run."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """AdamW's decoupled weight decay; 0 to 0.1."""
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    """Norm to which a larger gradient is clipped; `inf` does not clip."""
    token_budget: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Positions of a micro-batch, padding included; `auto` is 16384, or as many as the device's memory holds."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again instead of kept: less memory, a third more time."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass, while weights stay float32; `auto` is bfloat16 on GPUs that have it."""
    threads: Annotated[int, Ge(1), Le(4096)] | Literal["auto"] = "auto"
    """CPU threads of the learner; `auto` shares the cores by who is busy, tiny models get one."""
    device: str = "auto"
    """Device of the learner: `cpu`, `cuda`, `cuda:1`; `auto` is the first GPU, if there is one."""
    publish_every: Annotated[int, Ge(1)] = 1
    """Steps from one snapshot to the next; 1 if `rollouts.max_staleness` is 0. The last step is always published."""
    keep_snapshots: Annotated[int, Ge(2)] = 3
    """Newest snapshots that stay on disk."""
    checkpoint_every: Annotated[int, Ge(1)] = 50
    """Steps from one checkpoint to the next; a stop and the last step are always saved."""
    keep_groups: Annotated[int, Ge(0)] = 0
    """Steps whose groups keep their tokens and rewards in the ledger, counted back from a checkpoint; 0 keeps all."""
    on_collapse: Literal["warn", "stop", "off"] = "warn"
    """Reaction to a sign of collapse: `warn` records an event, `stop` also stops cleanly, `off` does nothing."""
    max_skipped: Annotated[int, Ge(1)] = 10
    """Steps in a row without a finite loss and gradient before the run is stopped."""

    @property
    def positions(self) -> int:
        """Positions of a micro-batch; a budget that nobody has compared with the memory is the largest."""
        return MOST_POSITIONS if self.token_budget == "auto" else self.token_budget

    @property
    def row_tokens(self) -> int:
        """Tokens of a row within which responses of one group share a copy of their prompt."""
        return self.positions // ROWS_PER_MICRO_BATCH

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of `step`, counted from 1, in a run of `steps`."""
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        progress = min((step - 1 - self.warmup_steps) / max(steps - self.warmup_steps, 1), 1.0)
        return self.lr * (0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress)
