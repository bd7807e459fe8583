"""Train on groups."""

from driftproof.learner.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint
from driftproof.learner.learner import Learner, Memory, Optimization
from driftproof.learner.loop import Cadence, OnCollapse, StallError, Tracker, learn
from driftproof.learner.packing import MicroBatch, pack
from driftproof.learner.policy import Policy, Scored

__all__ = [
    "Cadence",
    "CheckpointError",
    "Learner",
    "Memory",
    "MicroBatch",
    "OnCollapse",
    "Optimization",
    "Policy",
    "Scored",
    "StallError",
    "Tracker",
    "learn",
    "list_checkpoints",
    "load_checkpoint",
    "pack",
    "save_checkpoint",
]
