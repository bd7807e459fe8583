"""The learner: train on groups."""
