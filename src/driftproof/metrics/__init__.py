"""Metrics: health of a step, signs of collapse, trackers."""
