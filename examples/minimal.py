"""The whole idea on one page, on the package's own parts and in one process: python examples/minimal.py [MODEL]

1. Lease. The ledger hands out prompts in a seeded order, up to MAX_STALENESS steps ahead of the learner.
2. Generate. The engine writes GROUP_SIZE responses to each, with whatever weights it holds. Nobody notes which they
   were, or how likely they made a token.
3. Judge and commit. A prompt, its responses and their rewards are a group. The ledger keeps it, once, for good.
4. Take and train. The learner takes the oldest groups. ASymPO divides the loss of each response by the mean negative
   log-likelihood of its tokens under the *current* policy, so that responses which have become unlikely since they were
   written, some steps ago, do not take over. It needs nothing else: `objective.needs` is empty.
5. Publish. Every PUBLISH_EVERY steps the new weights are written whole, and the engine loads them.

`driftproof train` does the same with each side in processes of its own, any of which may be killed at any time.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers.utils import logging

from driftproof import tasks, verify
from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.evaluation.heldout import evaluate
from driftproof.learner.learner import Learner
from driftproof.learner.policy import Policy
from driftproof.learner.settings import LearnerSettings
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Plan
from driftproof.objectives import build
from driftproof.rollout.requests import make_request
from driftproof.run import RunDirectory
from driftproof.tasks.codec import Codec
from driftproof.types import Sampling
from driftproof.verify.judge import judge
from driftproof.weights.snapshots import Publisher, latest

STEPS, GROUPS_PER_STEP, GROUP_SIZE = 150, 16, 8
SLOTS = GROUPS_PER_STEP * GROUP_SIZE
MAX_STALENESS, PUBLISH_EVERY = 4, 2
WORKER, LEASE_SECONDS = "minimal", 600.0


def main(model: Path, run: RunDirectory) -> None:
    """Train the model of a directory for STEPS steps, and print its held-out accuracy before and after."""
    task = tasks.build("arithmetic", digits=2)
    verifier = verify.build(task.verifier)
    codec = Codec(model)
    sampling = Sampling(max_tokens=5, stop_ids=codec.stop_ids)
    objective = build("asympo")
    assert not objective.needs  # so neither the engine nor the ledger is asked for log-probs

    plan = Plan(
        seed=0,
        prompts=len(task.train),
        groups_per_step=GROUPS_PER_STEP,
        max_staleness=MAX_STALENESS,
        publish_every=PUBLISH_EVERY,
        steps=STEPS,
        channels=objective.needs,
    )
    ledger = Ledger.create(run.ledger, plan)
    policy = Policy.open(model, device="cpu")
    learner = Learner(policy, objective, LearnerSettings(lr=2e-4, schedule="linear"), steps=STEPS)
    publisher = Publisher(run.snapshots, model)
    engine = EmbeddedEngine.from_directory(model, slots=SLOTS)

    def accuracy() -> float:
        return evaluate(engine, task.heldout[:256], codec, verifier, sampling, samples=4).sampled

    def rollout_side() -> bool:
        """Lease what is admitted, write a token of everything under way, commit what is finished; False if idle."""
        for lease in ledger.lease(WORKER, engine.room // GROUP_SIZE, LEASE_SECONDS):
            prompt = task.train[lease.prompt_index]
            request = make_request(
                lease.dispatch,
                prompt,
                codec.encode(prompt),
                samples=GROUP_SIZE,
                sampling=sampling,
                want_logprobs=False,
            )
            engine.submit(request)
        completed = engine.collect()
        groups = judge(codec, verifier, completed)
        if groups:
            keys = [answered.request.key for answered in completed]
            ledger.commit(WORKER, dict(zip(keys, groups, strict=True)))
        return bool(groups) or engine.room < SLOTS

    def learner_side() -> None:
        """Train the oldest groups; publish the weights now and then."""
        batch = ledger.take(GROUPS_PER_STEP)
        assert batch is not None
        metrics = learner.train(batch)
        if learner.step % PUBLISH_EVERY == 0:
            publisher.publish(learner.step, policy.published())
            ledger.published(learner.step)
            engine.load(publisher.directory / "latest")
        ledger.finish_step(learner.step, metrics)
        if learner.step % 25 == 0:
            print(f"step {learner.step:4d}  reward {metrics['reward']:.2f}  age of the data {metrics['age_mean']:.1f}")

    print(f"accuracy before {accuracy():.3f}")
    while learner.step < STEPS:
        while rollout_side():
            pass  # as far ahead as the ledger admits, so that the data is as stale as it may be
        learner_side()
    print(f"accuracy after  {accuracy():.3f}")

    newest = latest(run.snapshots)
    assert newest is not None
    assert newest.step == STEPS
    print(f"the model is a Hugging Face directory: {newest.path}")
    for part in (engine, verifier, ledger):
        part.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else "models/tiny-qwen3"),
        RunDirectory(path=Path(tempfile.mkdtemp(prefix="driftproof-"))),
    )
