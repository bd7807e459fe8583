"""Three measures of an architecture: it is decoded right, trained right, and saved so that others open it right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.architectures.models import WINDOW
from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import generate
from driftproof.learner.learner import Learner
from driftproof.learner.policy import Policy
from driftproof.learner.settings import LearnerSettings
from driftproof.metrics import names
from driftproof.objectives import build
from driftproof.types import Batch, Group, Prompt, Request, Sampling, Verdict
from driftproof.weights.snapshots import Publisher

LENGTHS = (1, 3, 9, WINDOW, WINDOW + 1, 2 * WINDOW + 8)
"""Tokens of the prompts."""
LIMITS = (24, 5, 17, 30, 9, 20)
"""Tokens of the responses: rows end at different times, and others take their places."""
SLOTS = 3
STEPS, SAMPLES = 2, 4
CLOSE = 1e-4
"""Most that a ratio may be apart from 1."""


def greedy_agreement(model: Path) -> tuple[int, int]:
    """Greedy responses of the engine that are those of transformers' generate, and how many there are."""
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    prompts = _prompts(oracle.get_input_embeddings().num_embeddings, seed=1)
    expected = []
    for prompt, limit in zip(prompts, LIMITS, strict=True):
        ids = torch.from_numpy(prompt[None].astype(np.int64))
        settings = GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=None, pad_token_id=0)
        oracle.generation_config.eos_token_id = None
        answer = oracle.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        expected.append(answer[0, len(prompt) :].tolist())
    # So few tokens at a time that the long prompts are read in pieces.
    engine = EmbeddedEngine.from_directory(model, slots=SLOTS, prefill_tokens=WINDOW + 4)
    requests = [_ask(i, prompt, limit, 0.0) for i, (prompt, limit) in enumerate(zip(prompts, LIMITS, strict=True))]
    found = [responses[0].tokens.tolist() for responses in generate(engine, requests)]
    return sum(ours == theirs for ours, theirs in zip(found, expected, strict=True)), len(expected)


def ratio_of_fresh_data(model: Path, snapshots: Path, **settings: Any) -> float:
    """How far the ratio of GRPO is from 1 at most, over some steps on data that the newest weights have just written.

    Each step's weights are published, and read by the engine.
    """
    engine = EmbeddedEngine.from_directory(model, slots=2 * SAMPLES)
    policy = Policy.open(model, device="cpu")
    learner = Learner(policy, build("grpo"), LearnerSettings(lr=1e-3, **settings), steps=STEPS)
    publisher = Publisher(snapshots, model, keep=STEPS)
    worst = 0.0
    for step in range(STEPS):
        engine.load(publisher.publish(step, policy.published()).path)
        prompts = _prompts(policy.vocabulary, seed=step)
        requests = [_ask(i, prompt, limit, 1.0) for i, (prompt, limit) in enumerate(zip(prompts, LIMITS, strict=True))]
        groups = [
            Group.from_responses(
                i, request.prompt_tokens, responses, [Verdict(reward=float(n % 2)) for n in range(SAMPLES)]
            )
            for i, (request, responses) in enumerate(zip(requests, generate(engine, requests), strict=True))
        ]
        metrics = learner.train(Batch(step=step + 1, groups=tuple(groups), ages=(0,) * len(groups)))
        worst = max(worst, abs(metrics[names.RATIO_MIN] - 1), abs(metrics[names.RATIO_MAX] - 1))
    return worst


def reopened(pairs: Mapping[str, tuple[Path, Path]]) -> dict[str, float]:
    """How far the logits of each second directory are from the first one's, opened by transformers in a new process."""
    given = json.dumps({name: [str(path) for path in pair] for name, pair in pairs.items()})
    code = "from benchmarks.architectures.measures import compare; import sys; compare(sys.stdin.read())"
    done = subprocess.run(
        [sys.executable, "-c", code], input=given, capture_output=True, text=True, check=True, env=os.environ
    )
    differences: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return differences


@torch.no_grad()
def compare(given: str) -> None:
    """Print the differences of the logits of pairs of directories."""
    ids = torch.arange(3, 2 * WINDOW)[None]
    found = {}
    for name, pair in json.loads(given).items():
        one, other = (AutoModelForCausalLM.from_pretrained(path).eval()(input_ids=ids).logits for path in pair)
        found[name] = float((one - other).abs().max())
    print(json.dumps(found))


def _prompts(vocabulary: int, seed: int) -> Sequence[NDArray[np.int32]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(2, vocabulary, length).astype(np.int32) for length in LENGTHS]


def _ask(key: int, prompt: NDArray[np.int32], limit: int, temperature: float) -> Request:
    return Request(
        key=key,
        prompt=Prompt(index=key, text="", answer=""),
        prompt_tokens=prompt,
        samples=SAMPLES if temperature else 1,
        sampling=Sampling(max_tokens=limit, temperature=temperature, seed=key),
        want_logprobs=temperature > 0,
    )
