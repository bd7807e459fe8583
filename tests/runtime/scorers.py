"""Verifiers of a user: one that a random model can please half of the time, and some that go wrong."""

from __future__ import annotations

import os
import time


def parity(text: str, answer: str) -> float:
    return float(ord(text[:1] or " ") % 2)


def not_a_number(text: str, answer: str) -> float:
    return float("nan") if answer.endswith("1") else 0.0


def hangs(text: str, answer: str) -> float:
    if answer.endswith("1"):
        time.sleep(3600)
    return 0.0


def crashes(text: str, answer: str) -> float:
    if answer.endswith("1"):
        os._exit(3)
    return 1.0


def overflows(text: str, answer: str) -> float:
    """Finite, but nothing that is computed of it is."""
    return 1e308 if parity(text, answer) else -1e308
