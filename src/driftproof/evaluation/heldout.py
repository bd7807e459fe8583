"""How good a policy is on held-out prompts: sampled and greedy, with the number of samples.

Guarantees: the same engine weights, prompts and seed give the same samples; responses whose verification failed count
as reward 0 and are reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from driftproof.engines.protocol import Completed, Engine, generate
from driftproof.tasks.codec import Codec
from driftproof.types import Prompt, Request, Response, Sampling
from driftproof.verify import Verifier
from driftproof.verify.judge import judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Rewards on held-out prompts; with 0/1 rewards these are accuracies."""

    sampled: float
    """Mean reward of `samples` responses per prompt at the given temperature (mean@k)."""
    sampled_error: float
    """Standard error of `sampled` over prompts."""
    greedy: float
    """Mean reward of one greedy response per prompt."""
    prompts: int
    samples: int
    """Sampled responses per prompt."""
    unverified: int
    """Responses that counted 0 because their verification failed."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    engine: Engine, prompts: Sequence[Prompt], codec: Codec, verifier: Verifier, sampling: Sampling, samples: int
) -> Evaluation:
    """Answer every prompt `samples` times and once greedily.

    Raises:
        EngineError: the engine could not answer.
    """
    sampled_PK, failed = _rewards(engine, prompts, codec, verifier, sampling, samples)
    greedy_P1, failed_greedy = _rewards(engine, prompts, codec, verifier, replace(sampling, temperature=0.0), 1)
    per_prompt = sampled_PK.mean(axis=1)
    return Evaluation(
        sampled=float(per_prompt.mean()),
        sampled_error=float(per_prompt.std(ddof=1) / math.sqrt(len(prompts))) if len(prompts) > 1 else 0.0,
        greedy=float(greedy_P1.mean()),
        prompts=len(prompts),
        samples=samples,
        unverified=failed + failed_greedy,
    )


def _rewards(
    engine: Engine, prompts: Sequence[Prompt], codec: Codec, verifier: Verifier, sampling: Sampling, samples: int
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], int]:
    """Rewards [prompts, samples], and how many responses had none."""
    requests = [
        Request(
            key=position,
            prompt=prompt,
            prompt_tokens=codec.encode(prompt),
            samples=samples,
            sampling=replace(sampling, seed=sampling.seed + position),
        )
        for position, prompt in enumerate(prompts)
    ]
    answers: list[tuple[Response, ...]] = generate(engine, requests)
    completed = [Completed(request=q, responses=a) for q, a in zip(requests, answers, strict=True)]
    rewards_PK = np.stack([group.rewards for group in judge(codec, verifier, completed)])
    return np.nan_to_num(rewards_PK, nan=0.0), int(np.isnan(rewards_PK).sum())
