"""How good a policy is on a benchmark: mean@k and unbiased pass@k, through any engine, resumable.

Guarantees: a problem counts once its line is on disk, whole; the same command goes on with those that are missing, and
a record of other settings is refused, not mixed. A line that was cut off by a crash is written again. Responses whose
verification failed count as wrong and are counted apart; a problem whose generation failed is not in the figures, is
counted, and is tried again by the next call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import IO, Any

import numpy as np

from driftproof.engines.protocol import Completed, Engine
from driftproof.errors import ConfigError, EngineError
from driftproof.evaluation.intervals import bootstrap
from driftproof.rollout.requests import make_request
from driftproof.run import fsync
from driftproof.tasks.codec import Codec
from driftproof.types import Prompt, Request, Sampling
from driftproof.verify import Verifier
from driftproof.verify.judge import judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What became of one problem: a line of the record."""

    index: int
    """Position in the benchmark."""
    rewards: tuple[float, ...]
    """Of the k responses; 0 where `unverified`."""
    unverified: int
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and its 95% bootstrap interval over the problems."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A policy on a benchmark."""

    name: str
    problems: int
    failed: int
    """Problems without an answer from the engine; they are in no figure."""
    failure: str
    """Why the last of these has none."""
    samples: int
    unverified: int
    mean: Estimate
    """mean@k: mean reward over all responses."""
    passed: Mapping[int, Estimate]
    """Per k the probability that at least one of k responses is right."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate from `samples` responses of which `right` are right: 1 - C(n - c, k) / C(n, k).

    Source: arXiv 2107.03374, Eq. 1.

    Raises:
        ValueError: not 0 <= right <= samples, or not 1 <= k <= samples.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} responses with {right} right; 1 <= k <= responses, and no more right")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def score(name: str, problems: Sequence[Problem], failed: int = 0, failure: str = "") -> Score:
    """The figures of a benchmark; a response is right where its reward is at least 1. pass@k for powers of 2.

    Raises:
        ConfigError: no problems.
    """
    if not problems:
        raise ConfigError(f"benchmark {name!r}: no problem was answered")
    samples = len(problems[0].rewards)
    right = [sum(reward >= 1 for reward in problem.rewards) for problem in problems]
    ks = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    return Score(
        name=name,
        problems=len(problems),
        failed=failed,
        failure=failure,
        samples=samples,
        unverified=sum(problem.unverified for problem in problems),
        mean=_estimate([fmean(problem.rewards) for problem in problems]),
        passed={k: _estimate([pass_at_k(samples, count, k) for count in right]) for k in ks},
    )


def run_benchmark(
    name: str,
    engine: Engine,
    prompts: Sequence[Prompt],
    codec: Codec,
    verifier: Verifier,
    sampling: Sampling,
    samples: int,
    record: Path,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], object] = lambda done, of: None,
) -> Score:
    """Answer what the record does not have yet, and score all of it.

    Args:
        record: JSON lines, made where it is missing; the first line holds `settings`.
        settings: what determines the answers (model, sampling, ...).
        progress: called with the problems that are done and those there are.

    Raises:
        ConfigError: the record is that of other settings; nothing was answered.
        EngineError: a problem can never be answered (prompt too long for the model), or none was.
    """
    determined = {"benchmark": name, "samples": samples, "problems": len(prompts), **settings}
    done = {problem.index: problem for problem in read_record(record, determined)}
    missing = [position for position in range(len(prompts)) if position not in done]
    failed, failure = 0, ""
    progress(len(done), len(prompts))
    with record.open("a") as file:
        waiting = [_request(prompts[i], i, codec, sampling, samples) for i in missing]
        under_way = 0
        while waiting or under_way:
            while waiting and (engine.room >= samples or not under_way):
                engine.submit(waiting.pop(0))
                under_way += 1
            for completed in engine.collect():
                under_way -= 1
                if completed.error:
                    failed, failure = failed + 1, completed.error
                    continue
                problem = _verified(completed, codec, verifier)
                done[problem.index] = problem
                _write(file, asdict(problem))
                progress(len(done), len(prompts))
    fsync(record)
    if failed and not done:
        raise EngineError(f"benchmark {name!r}: no problem was answered: {failure}")
    return score(name, [done[index] for index in sorted(done)], failed, failure)


def read_record(record: Path, settings: Mapping[str, Any]) -> list[Problem]:
    """What a record holds; it is begun where it is missing, and what a crash cut off is taken away.

    Raises:
        ConfigError: it is a record of other settings, or no record.
    """
    header = json.dumps(dict(settings), sort_keys=True)
    if not record.is_file():
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(header + "\n")
        return []
    text = record.read_text()
    whole = text[: text.rfind("\n") + 1]
    first, *lines = whole.splitlines() or [""]
    if first != header:
        raise ConfigError(
            f"{record} is the record of another evaluation ({first[:200]}); this one has {header[:200]}; "
            "choose another --output, or remove it"
        )
    if whole != text:
        record.write_text(whole)
    return [_problem(line, f"{record}, line {number}") for number, line in enumerate(lines, start=2)]


def _problem(line: str, where: str) -> Problem:
    try:
        content = json.loads(line)
        return Problem(
            index=int(content["index"]),
            rewards=tuple(map(float, content["rewards"])),
            unverified=int(content["unverified"]),
            texts=tuple(map(str, content["texts"])),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is damaged ({error}); remove the line, and it is answered again") from error


def _request(prompt: Prompt, position: int, codec: Codec, sampling: Sampling, samples: int) -> Request:
    return make_request(position, prompt, codec.encode(prompt), samples=samples, sampling=sampling, want_logprobs=False)


def _verified(completed: Completed, codec: Codec, verifier: Verifier) -> Problem:
    (group,) = judge(codec, verifier, [completed])
    return Problem(
        index=completed.request.key,
        rewards=tuple(np.nan_to_num(group.rewards, nan=0.0).tolist()),
        unverified=int(np.isnan(group.rewards).sum()),
        texts=tuple(codec.decode(tokens) for tokens in group.split()),
    )


def _write(file: IO[str], content: Mapping[str, Any]) -> None:
    """One line at once, handed to the system: a crash of this process loses none that was written."""
    file.write(json.dumps(content) + "\n")
    file.flush()


def _estimate(values: Sequence[float]) -> Estimate:
    low, high = bootstrap(values)
    return Estimate(value=fmean(values), low=low, high=high)
