"""Train on groups."""

from driftproof.learner.checkpoint import (
    CheckpointError,
    check_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from driftproof.learner.learner import Learner, Memory, Optimization
from driftproof.learner.loop import Cadence, DivergenceError, OnCollapse, StallError, Tracker, learn
from driftproof.learner.packing import MicroBatch, pack
from driftproof.learner.policy import Policy, Scored

__all__ = [
    "Cadence",
    "CheckpointError",
    "DivergenceError",
    "Learner",
    "Memory",
    "MicroBatch",
    "OnCollapse",
    "Optimization",
    "Policy",
    "Scored",
    "StallError",
    "Tracker",
    "check_checkpoint",
    "learn",
    "list_checkpoints",
    "load_checkpoint",
    "pack",
    "save_checkpoint",
]
