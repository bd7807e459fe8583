"""How good a policy is on a benchmark, through any engine, resumable.

Guarantees: a problem counts once its line is on disk, whole, with its responses; the same command goes on with those
that are missing, and a record of anything else that determines a result is refused, not mixed: other problems, golds,
templates, shots, system messages, chat templates, verifiers, weights, or sampling. Responses whose verification failed
count as wrong and are counted apart; a problem whose generation failed is counted, but in no figure, and is tried again
by the next call.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from driftproof.engines.protocol import Engine
from driftproof.errors import ConfigError, EngineError
from driftproof.evaluation.heldout import answer
from driftproof.evaluation.score import Problem, Score, score
from driftproof.run import fsync
from driftproof.tasks import TASKS, Task, build
from driftproof.tasks.codec import Codec
from driftproof.types import Sampling
from driftproof.verify import Verifier
from driftproof.verify.judge import judge
from driftproof.weights.models import fingerprint_weights, inspect_model


def run_benchmark(
    task: Task,
    engine: Engine,
    codec: Codec,
    verifier: Verifier,
    sampling: Sampling,
    samples: int,
    record: Path,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], object] = lambda done, of: None,
) -> Score:
    """Answer the held-out problems that the record does not have yet, and score all of it.

    `record` is a file of JSON lines, made where it is missing. Its first line holds what determines the rewards: the
    `settings` (model, sampling, ...) and the task's own. Each other one is a problem with its responses. `progress` is
    called with the problems that are done and those there are.

    Raises:
        ConfigError: the record is that of other settings; nothing was answered.
        EngineError: a problem can never be answered (prompt too long for the model), or none was.
    """
    size = len(task.heldout)
    determined = {"benchmark": task.name, "samples": samples, "problems": size, **task_facts(task, codec), **settings}
    done = {problem.index: problem for problem in read_record(record, determined)}
    missing = {position: prompt for position, prompt in enumerate(task.heldout) if position not in done}
    failed, failure = 0, ""
    progress(len(done), size)
    with record.open("a") as file:
        for completed in answer(engine, missing, codec, sampling, samples):
            if completed.error:
                failed, failure = failed + 1, completed.error
                continue
            (group,) = judge(codec, verifier, [completed])
            problem = Problem(
                index=completed.request.key,
                rewards=tuple(np.nan_to_num(group.rewards, nan=0.0).tolist()),
                unverified=sum(map(bool, group.problems)),
                texts=tuple(codec.decode(tokens) for tokens in group.split()),
            )
            done[problem.index] = problem
            # One line at once, handed to the system: a crash of this process loses none that was written.
            asked = task.heldout[problem.index]
            line = asdict(problem) | {"prompt": asked.text, "answer": asked.answer}
            file.write(json.dumps(line) + "\n")
            file.flush()
            progress(len(done), size)
    fsync(record)
    if failed and not done:
        raise EngineError(f"benchmark {task.name!r}: no problem was answered: {failure}")
    return score(task.name, [done[index] for index in sorted(done)], failed, failure)


def benchmark_task(name: str, data: Path | None, fields: Mapping[str, Any]) -> Task:
    """A task to be scored on, of the files in `data/name` where `data` is given."""
    files: dict[str, Any] = {}
    if data is not None:
        files = {"path": data / name / "test.jsonl"}
        if name in TASKS and "heldout" in inspect.signature(TASKS[name]).parameters:
            # It can be trained on, too.
            files = {"path": data / name / "train.jsonl", "heldout": data / name / "test.jsonl"}
    task = build(name, **{**fields, **files})
    if not task.heldout:
        raise ConfigError(f"task {name!r} has no held-out problems to be scored on")
    return task


def writer_of(engine: Engine, model: Path, *, retokenize: bool) -> dict[str, Any]:
    """The writer of the responses, as a record names it: the weights of a model directory, or the name and dialect of
    served ones. An address is no part of it, so that a record can be gone on with elsewhere.
    """
    from driftproof.engines.openai.engine import OpenAIEngine

    if not isinstance(engine, OpenAIEngine):
        return {"weights": fingerprint_weights(model)}
    served = {(facts.dialect.value, facts.model): facts.url for facts in engine.facts}
    if len(served) > 1:
        different = ", ".join(f"{name!r} ({dialect}) at {url}" for (dialect, name), url in sorted(served.items()))
        raise EngineError(
            f"the servers do not serve one model, as an evaluation needs: {different}; name the model with "
            "--engine.model, or give the addresses of some alone"
        )
    ((dialect, name),) = served
    tokenizer = inspect_model(model).fingerprint
    return {"served_model": name, "dialect": dialect, "tokenizer": tokenizer, "retokenize": retokenize}


_DIFFERENCES = {
    "benchmark": "the benchmark",
    "problems": "the number of problems",
    "questions": "the problems, the template around them, the shots before them or the system message",
    "golds": "the gold answers or other columns for reward functions",
    "prompt_tokens": "the chat template or the tokenizer",
    "verifier": "the verifier",
    "weights": "the weights of the model",
    "stop_ids": "the tokens that end a response",
    "samples": "evaluation.samples",
}


def task_facts(task: Task, codec: Codec) -> dict[str, Any]:
    """The facts of a task that determine its rewards: digests of the held-out questions, of the token ids that the
    chat template makes of them, and of the gold answers; the verifiers and their weights."""
    return {
        "questions": _digest((prompt.system, prompt.turns, prompt.text) for prompt in task.heldout),
        "golds": _digest((prompt.answer, dict(prompt.columns)) for prompt in task.heldout),
        "prompt_tokens": _digest(codec.encode(prompt).tolist() for prompt in task.heldout),
        "verifier": [*_verifier_facts(task.verifier), *map(str, task.weights)],
    }


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()[:16]


def _verifier_facts(names: str | Sequence[str]) -> list[str]:
    """Each verifier by its name and version: the packages' for ours, the source file's digest for your own."""
    said = []
    for name in [names] if isinstance(names, str) else names:
        module, own, _ = name.partition(":")
        if not own:
            packages = ("driftproof", "math-verify") if name.startswith("math") else ("driftproof",)
            said.append(" ".join((name, *map(_version, packages))))
        elif (source := _source(module)) is not None:
            said.append(f"{name} {hashlib.sha256(source.read_bytes()).hexdigest()[:16]}")
        else:
            said.append(name)
    return said


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _source(module: str) -> Path | None:
    """The file of a module, found without importing it or a package around it."""
    first, *rest = module.split(".")
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [Path(folder, *rest[:-1], f"{rest[-1]}.py") for folder in folders] if rest else []
    if spec and spec.origin and not rest:
        files = [Path(spec.origin)]
    return next((file for file in files if file.is_file()), None)


def read_record(record: Path, settings: Mapping[str, Any]) -> list[Problem]:
    """The problems of a record; it is begun where it is missing, and what a crash cut off is taken away."""
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
            f"{record} is the record of another evaluation: it differs in {_differences(first, settings)}; choose "
            "another --output, or remove it"
        )
    if whole != text:
        record.write_text(whole)
    return [_read_problem(line, f"{record}, line {number}") for number, line in enumerate(lines, start=2)]


def _differences(first: str, settings: Mapping[str, Any]) -> str:
    """The settings in which the first line of a record differs, in words."""
    try:
        theirs = json.loads(first)
    except (ValueError, RecursionError):
        theirs = None
    if not isinstance(theirs, dict):
        return f"its first line, which is no record's ({first[:60]!r})"
    ours = json.loads(json.dumps(dict(settings)))
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return ", ".join(
        f"{name} ({str(theirs.get(name, 'none'))[:60]}, now {str(ours.get(name, 'none'))[:60]})"
        if name not in _DIFFERENCES
        else _DIFFERENCES[name]
        for name in names
    )


def _read_problem(line: str, where: str) -> Problem:
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
