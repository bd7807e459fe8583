"""The storm's verifier: right or wrong, but for a seeded share of the responses it hangs, crashes or raises."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from driftproof import faults

SEED_VARIABLE = "CHAOS_SEED"
LOG = "verifier.log"
ONE_IN = 2500
"""Responses of which one hangs, one ends its process and one raises."""


def judge(text: str, answer: str) -> float:
    """1.0 for the answer, else 0.0."""
    seed = os.environ[SEED_VARIABLE]
    drawn = int.from_bytes(hashlib.blake2b(f"{seed}/{text}/{answer}".encode(), digest_size=8).digest()) % ONE_IN
    if drawn == 0:
        _note("verifier hung")
        time.sleep(3600)
    elif drawn == 1:
        _note("verifier crashed")
        os._exit(3)
    elif drawn == 2:
        _note("verifier raised")
        raise ValueError("a planted fault of the verifier")
    return float(text.strip() == answer)


def _note(what: str) -> None:
    with (Path(os.environ[faults.VARIABLE]) / LOG).open("a") as log:
        log.write(f"{what}\n")
