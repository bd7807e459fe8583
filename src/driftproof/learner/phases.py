"""Phases of the learner's loop, in the words that a process tells of itself; without torch, for whoever looks on."""

from driftproof.metrics import names

WAITS_FOR_GROUPS = "waits for groups"
"""Phase of a learner that has nothing to train on."""
TRAINS = "trains a step"
PHASES = {
    names.WAIT_SECONDS: WAITS_FOR_GROUPS,
    names.TRAIN_SECONDS: TRAINS,
    names.PUBLISH_SECONDS: "publishes weights",
    names.RECORD_SECONDS: "records its step",
    names.CHECKPOINT_SECONDS: "writes a checkpoint",
}
"""Phases of a step, by the metric that counts their time."""
