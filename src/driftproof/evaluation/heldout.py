"""An engine's answers to held-out prompts, sampled and greedy, and what they are worth.

Guarantees: the same weights, prompts and sampling give the same responses, whatever else is asked beside them, for the
seed of a prompt is `sampling.seed` plus its position; responses whose verification failed count as reward 0 and are
reported.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from driftproof.engines.protocol import Completed, Engine
from driftproof.engines.recorded import RecordedEngine
from driftproof.errors import EngineError
from driftproof.tasks.codec import Codec
from driftproof.tasks.protocol import RecordedGroup
from driftproof.types import Group, Prompt, Request, Sampling
from driftproof.verify import Verifier
from driftproof.verify.exact import ExactVerifier
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


def evaluate(
    engine: Engine, prompts: Sequence[Prompt], codec: Codec, verifier: Verifier, sampling: Sampling, samples: int
) -> Evaluation:
    """Answer every prompt `samples` times and once greedily; raises EngineError where the engine could not."""
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


def answer(
    engine: Engine, prompts: Mapping[int, Prompt], codec: Codec, sampling: Sampling, samples: int
) -> Iterator[Completed]:
    """Have an idle engine answer each prompt (by its position, its key) `samples` times; the answers as they come."""
    for position, prompt in prompts.items():
        seeded = replace(sampling, seed=sampling.seed + position)
        tokens = codec.encode(prompt)
        engine.submit(Request(key=position, prompt=prompt, prompt_tokens=tokens, samples=samples, sampling=seeded))
    under_way = len(prompts)
    while under_way:
        for completed in engine.collect():
            under_way -= 1
            yield completed


def recorded_groups(recorded: Sequence[RecordedGroup], codec: Codec) -> list[Group]:
    """Groups of recorded responses, tokenized, with the rewards that they have on record."""
    engine = RecordedEngine(recorded, codec.encode_response)
    prompts = {group.prompt.index: group.prompt for group in recorded}
    return judge(codec, ExactVerifier(), list(answer(engine, prompts, codec, Sampling(max_tokens=1), samples=1)))


def _rewards(
    engine: Engine, prompts: Sequence[Prompt], codec: Codec, verifier: Verifier, sampling: Sampling, samples: int
) -> tuple[NDArray[np.float64], int]:
    """Rewards [prompts, samples], and how many responses had none."""
    completed = sorted(answer(engine, dict(enumerate(prompts)), codec, sampling, samples), key=lambda c: c.request.key)
    if failed := [one.error for one in completed if one.error]:
        raise EngineError(failed[0])
    groups = judge(codec, verifier, completed)
    rewards_PK = np.stack([group.rewards for group in groups])
    return np.nan_to_num(rewards_PK, nan=0.0), sum(bool(problem) for group in groups for problem in group.problems)
