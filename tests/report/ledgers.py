"""Ledgers of runs, made the way a run makes them."""

import math
from typing import Any

import numpy as np

from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Counters
from driftproof.types import FinishReason, Group

GROUPS_PER_STEP, GROUP_SIZE = 2, 4
RECIPE = '[objective]\nname = "asympo"\n[model]\npath = "models/tiny-$1_$2"\n'
BEFORE = {"sampled": 0.34, "sampled_error": 0.01, "greedy": 0.4, "prompts": 512, "samples": 4, "unverified": 0}
AFTER = {"sampled": 0.62, "sampled_error": 0.02, "greedy": 0.75, "prompts": 512, "samples": 4, "unverified": 0}


def step_metrics(step: int, *, negatives: bool = True, entropy: bool = True) -> dict[str, Any]:
    """What the learner writes for a step: it learns quickly, trains for 0.08 s of 0.1 s, and rollouts never rest."""
    progress = 1 - math.exp(-step / 100)
    noise = np.random.default_rng(step).normal(size=4)
    positive, negative = 0.4 - 0.3 * progress, 0.6 + 0.8 * progress
    metrics = {
        "loss": 0.0,
        "grad_norm": 1.0 + 0.2 * abs(noise[0]),
        "skipped": 0.0,
        "lr": 5e-4,
        "health/nll": 0.5,
        "health/positive_nll": positive + 0.02 * noise[1],
        "reward": min(max(0.34 + 0.3 * progress + 0.05 * noise[2], 0.0), 1.0),
        "age_mean": 3.4 + 0.2 * noise[3],
        "age_max": 4,
        "groups": GROUPS_PER_STEP,
        "responses": GROUPS_PER_STEP * GROUP_SIZE,
        "response_tokens": 24,
        "time/wait_seconds": 0.02,
        "time/train_seconds": 0.07,
        "time/publish_seconds": 0.01,
        "time/step_seconds": 0.1,
        # Two workers that are always busy; what they write comes in bursts.
        "rollout/busy_seconds": 0.4 if step % 2 else 0.0,
        "rollout/tokens": 48 if step % 2 else 0,
    }
    if negatives:
        metrics |= {"health/negative_nll": negative + 0.05 * noise[0], "health/scale_imbalance": negative / positive}
    if entropy:
        metrics["health/entropy"] = 0.8 - 0.5 * progress + 0.02 * noise[2]
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in metrics.items()}


def group(ledger: Ledger, dispatch: int, rewards: list[float] | None = None) -> Group:
    """The group of a dispatch: the prompt is "p", the responses are letters; fewer than one in five is right."""
    if rewards is None:
        rewards = [float((dispatch + sample) % 5 == 0) for sample in range(GROUP_SIZE)]
    size = len(rewards)
    return Group(
        prompt_index=ledger.prompt_of(dispatch),
        prompt_tokens=np.frombuffer(b"p", np.uint8).astype(np.int32),
        response_tokens=np.array([97 + sample for sample in range(size) for _ in range(3)], np.int32),
        response_lengths=np.full(size, 3, np.int32),
        rewards=np.array(rewards),
        finish_reasons=(FinishReason.STOP,) * size,
        problems=tuple("time limit" if math.isnan(reward) else "" for reward in rewards)
        if any(map(math.isnan, rewards))
        else (),
    )


def grow(ledger: Ledger, steps: int, **metrics: bool) -> None:
    """Lease, commit, take and finish `steps` more steps."""
    for worker in ("worker-0", "worker-1"):
        ledger.report_worker(worker, Counters(busy_seconds=1.0, tokens=24))
    for step in range(ledger.step + 1, ledger.step + steps + 1):
        if ledger.status().ready < GROUPS_PER_STEP:
            leases = ledger.lease("worker-0", 16 * GROUPS_PER_STEP, 60)
            ledger.commit("worker-0", {lease.dispatch: group(ledger, lease.dispatch) for lease in leases})
        assert ledger.take(GROUPS_PER_STEP) is not None
        ledger.finish_step(step, step_metrics(step, **metrics))
