"""Asynchronous RL post-training of language models that needs no behavior information."""

__version__ = "0.1.0"
