"""Rollout workers: lease, generate, verify, commit."""
