"""One process of a crew around a ledger: `crew.py LEDGER write NAME` or `crew.py LEDGER train NAME`.

A writer prints the dispatch number of every group that the ledger accepted from it; the trainer those of every step.
"""

import random
import sys
import time
from pathlib import Path

import numpy as np

from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import RUNNING
from driftproof.types import FinishReason, Group


def make_group(dispatch: int, prompt_index: int, worker: int) -> Group:
    tokens = np.array([dispatch, worker], np.int32)
    return Group(
        prompt_index=prompt_index,
        prompt_tokens=tokens,
        response_tokens=tokens,
        response_lengths=np.array([2], np.int32),
        rewards=np.zeros(1),
        finish_reasons=(FinishReason.STOP,),
    )


def write(ledger: Ledger, name: str) -> None:
    """Lease for a moment only, and now and then dawdle until the lease has passed on."""
    generator = random.Random(name)
    while ledger.state() == RUNNING:
        leases = ledger.lease(name, generator.randint(1, 3), seconds=0.01)
        if not leases:
            time.sleep(0.001)
        if generator.random() < 0.2:
            time.sleep(0.015)
        for lease in leases:
            group = make_group(lease.dispatch, lease.prompt_index, int(name))
            if ledger.commit(name, {lease.dispatch: group}):
                print(lease.dispatch, flush=True)


def train(ledger: Ledger) -> None:
    while ledger.step < ledger.plan.steps:
        batch = ledger.take(ledger.plan.groups_per_step)
        if batch is None:
            time.sleep(0.001)
            continue
        ledger.finish_step(batch.step, {})
        print(*(int(group.response_tokens[0]) for group in batch.groups), flush=True)
    ledger.set_state("finished")


if __name__ == "__main__":
    path, role, name = sys.argv[1:]
    with Ledger(Path(path)) as ledger:
        if role == "train":
            train(ledger)
        else:
            write(ledger, name)
