"""Asynchronous RL post-training of language models that needs no behaviour information."""

__version__ = "0.1.0"
