"""Settings of the rollout side, as a recipe's `[rollouts]` gives them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """Workers, their groups, and how far they may be ahead of the learner."""

    workers: Annotated[int, Ge(0), Le(1024)] = 1
    """Built-in rollout workers; with 0 all groups come through `driftproof inbox`."""
    group_size: Annotated[int, Ge(1)] = 8
    """Responses to each prompt; 4 to 64."""
    max_staleness: Annotated[int, Ge(0)] = 4
    """Steps that the rollout side may be ahead; 0 is synchronous, and so is any value in `runtime.mode` sync."""
    lease_seconds: Annotated[float, Gt(0)] = 120.0
    """Silence after which a worker has lost its leases; after twice as long it is killed and replaced."""
    path: Path | None = None
    """Recorded trace to train on, in the share below."""
    recorded_share: Annotated[float, Gt(0), Le(1)] | None = None
    """Share of the groups that are recorded; the rest is live. 1 trains on the trace alone."""
