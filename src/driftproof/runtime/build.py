"""From a configuration to the parts of a run: one factory for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from driftproof import tasks, verify
from driftproof.config import Config
from driftproof.engines.protocol import Engine
from driftproof.engines.recorded import RecordedEngine
from driftproof.errors import ConfigError
from driftproof.inbox.service import Inbox
from driftproof.learner.learner import Learner
from driftproof.learner.policy import Policy
from driftproof.ledger.leases import Leases
from driftproof.objectives import Objective, build, find
from driftproof.rollout.worker import RolloutWorker
from driftproof.run import RunDirectory
from driftproof.runtime.architecture import check_architecture
from driftproof.runtime.resources import resolve_device
from driftproof.tasks.checks import limit_characters, limit_tokens
from driftproof.tasks.codec import Codec
from driftproof.tasks.protocol import Task
from driftproof.types import Channel, Prompt, Sampling
from driftproof.verify import Verifier
from driftproof.verify.exact import ExactVerifier
from driftproof.weights.models import ModelInfo, inspect_model

if TYPE_CHECKING:
    from driftproof.engines.embedded.engine import EmbeddedEngine

INBOX_SECTIONS = ("model", "task", "sampling", "rollouts", "verify")
"""Sections of the configuration that an inbox is made of."""


def make_objective(config: Config) -> Objective:
    """The objective; its horizon, if not given, is the longest response."""
    fields = config.objective.fields
    default = find(config.objective.name).aggregation
    if fields.get("aggregation", default) == "seq-mean-token-sum-norm":
        fields = {"horizon": config.sampling.max_tokens} | fields
    return build(config.objective.name, **fields)


def make_task(config: Config) -> Task:
    """The task; where there is a recorded trace, its groups stand behind the task's prompts, or are the task. What is
    too long is refused by its characters, or dropped."""
    name, path, drop = config.task.name, config.rollouts.path, config.task.too_long == "drop"
    if name == "recorded":
        task = tasks.build(name, **config.task.fields | ({} if path is None else {"path": path}))
    else:
        task = tasks.build(name, **config.task.fields)
        task = task if path is None else tasks.with_recorded(task, path)
    task = limit_characters(task, config.task.max_characters, drop=drop)
    if drop:
        # Every process must have the same prompts, so each leaves out what is too long.
        task = limit_task_tokens(config, task, inspect_model(config.model.path), make_codec(config))
    return task


def limit_task_tokens(config: Config, task: Task, model: ModelInfo, codec: Codec) -> Task:
    """The task without what is too long for the model; TaskError unless the recipe drops it."""
    drop = config.task.too_long == "drop"
    return limit_tokens(task, codec, model.context, config.sampling.max_tokens, note=model.context_note, drop=drop)


def make_codec(config: Config) -> Codec:
    """The tokenizer of the policy's model, with the variables of its chat template."""
    return Codec(config.model.path, config.model.chat_template_kwargs)


def make_sampling(config: Config, codec: Codec) -> Sampling:
    return Sampling(**asdict(config.sampling), stop_ids=codec.stop_ids, seed=config.run.seed)


def make_verifier(config: Config, task: Task) -> Verifier:
    settings = config.verify
    return verify.build(
        task.verifier,
        weights=task.weights,
        processes=settings.processes,
        timeout_seconds=settings.timeout_seconds,
        on_timeout=settings.on_timeout,
        memory_gib=settings.memory_gib,
        together=settings.together,
    )


def make_learner(config: Config) -> Learner:
    """The learner at step 0, with the base model's weights."""
    device = resolve_device(config.learner.device)
    dtype = config.learner.dtype
    objective = make_objective(config)
    bfloat16 = dtype == "bfloat16" or (dtype == "auto" and device == "cuda" and torch.cuda.is_bf16_supported())
    open_policy = partial(Policy.open, device=device, temperature=config.sampling.temperature, bfloat16=bfloat16)
    reference = None
    if Channel.REFERENCE_LOGPROBS in objective.needs:
        reference = open_policy(config.model.reference or config.model.path)
    return Learner(
        open_policy(config.model.path, value_head=Channel.VALUES in objective.needs),
        objective,
        config.learner,
        steps=config.run.steps,
        baseline=config.advantages.baseline,
        reference=reference,
    )


def make_worker(
    config: Config, directory: RunDirectory, leases: Leases, name: str, phase: Callable[[str], object]
) -> RolloutWorker:
    phase("loads its model and starts its verifier")
    task = make_task(config)
    codec = make_codec(config)
    return RolloutWorker(
        name,
        leases,
        make_engine(config, directory, task, codec),
        task,
        codec,
        # Recorded responses have their rewards, so nothing needs to be started for them.
        make_verifier(config, task) if config.rollouts.recorded_share != 1 else ExactVerifier(),
        directory.snapshots,
        config.rollouts,
        make_sampling(config, codec),
        phase,
    )


def make_engine(config: Config, directory: RunDirectory, task: Task, codec: Codec) -> Engine:
    """The engine of a worker: the live one, where recorded groups are not all, with the recorded ones before it."""
    if config.rollouts.recorded_share == 1:
        return RecordedEngine(task.recorded, codec.encode_response, None)
    urls = [directory.server_url.read_text()] if config.engine.launch else config.engine.url
    live = _open_live(config, urls, task.train[0], codec, follows_weights=True)
    return RecordedEngine(task.recorded, codec.encode_response, live) if task.recorded else live


def make_evaluation_engine(config: Config, prompt: Prompt, codec: Codec) -> Engine:
    """The engine of an evaluation: running servers as they are, no weights go to them; else the model's own weights.

    `prompt` is one of those that it will answer.

    Raises:
        ConfigError: it is asked to launch a server. EngineError: no server answers, or one of them cannot be used.
        ModelError: the embedded engine would decode the model wrongly.
    """
    if config.engine.launch:
        raise ConfigError(
            "engine.launch starts a server for a training run alone; to evaluate what a running server answers, set "
            "--engine.launch false --engine.url http://127.0.0.1:8000; to evaluate the model directory, "
            "--engine.launch false --engine.name embedded"
        )
    if config.engine.name == "embedded":
        check_architecture(config.model.path, trained=False)
    return _open_live(config, config.engine.url, prompt, codec, follows_weights=False)


def _open_live(config: Config, urls: Sequence[str], prompt: Prompt, codec: Codec, *, follows_weights: bool) -> Engine:
    settings, model = config.engine, config.model.path
    if settings.name == "embedded":
        return open_engine(config, model)
    from driftproof.engines.openai.engine import OpenAIEngine
    from driftproof.engines.openai.pool import RetryPolicy
    from driftproof.engines.vllm.updater import Canary, VllmUpdater

    updater = None
    if settings.name == "vllm" and follows_weights:
        canary = Canary(model, tolerance=settings.canary_tolerance) if settings.canary_tolerance else None
        updater = VllmUpdater(canary=canary, api_key_variable=settings.api_key_variable)
    return OpenAIEngine(
        urls,
        vocabulary=inspect_model(model).vocabulary,
        tokenizer=codec,
        sample_text=prompt.text,
        model=settings.model,
        slots=settings.slots,
        policy=RetryPolicy(timeout_seconds=settings.timeout_seconds, attempts=settings.attempts),
        retokenize=settings.retokenize,
        updater=updater,
        api_key_variable=settings.api_key_variable,
    )


def open_engine(config: Config, model: Path) -> EmbeddedEngine:
    """An embedded engine with the weights of a model directory."""
    from driftproof.engines.embedded.engine import EmbeddedEngine

    device = resolve_device(config.engine.device)
    return EmbeddedEngine.from_directory(model, slots=config.engine.slots, device=device)


def open_inbox(path: Path) -> Inbox:
    """The inbox of the run in a directory; the learner need not run.

    Raises:
        ValueError: not a run, or one that trains on recorded traces, if only in part; its model or task is not there.
    """
    directory = RunDirectory(path=path)
    if not (directory.config.is_file() and directory.ledger.is_file()):
        raise ConfigError(f"{path} is not a run: it has no {directory.config.name} or no {directory.ledger.name}")
    config = Config.from_toml(directory.config.read_text(encoding="utf-8"))
    task = make_task(config)
    if config.rollouts.recorded_share == 1:
        raise ConfigError(f"{path} trains on recorded traces; there is nothing for workers to write")
    if task.recorded:
        raise ConfigError(
            f"{path} mixes recorded groups with live ones (rollouts.recorded_share); which of them a lease is of "
            "cannot be chosen, so there is no inbox; built-in workers write them all (rollouts.workers)"
        )
    codec = make_codec(config)
    return Inbox(
        directory,
        task,
        codec,
        inspect_model(config.model.path).vocabulary,
        partial(make_verifier, config, task),
        config.rollouts,
        make_sampling(config, codec),
        up_to_date=partial(_up_to_date, directory, config),
    )


def _up_to_date(directory: RunDirectory, config: Config) -> bool:
    """Whether a resume has left the settings of the inbox alone."""
    try:
        now = Config.from_toml(directory.config.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a resume is writing it
        return False
    return all(getattr(now, section) == getattr(config, section) for section in INBOX_SECTIONS)
