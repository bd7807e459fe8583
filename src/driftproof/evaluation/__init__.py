"""Evaluation: held-out prompts, benchmarks, agreement of verifiers with labels."""
