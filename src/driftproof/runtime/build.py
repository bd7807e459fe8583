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
from driftproof.learner.learner import Learner
from driftproof.learner.policy import Policy
from driftproof.ledger.leases import Leases
from driftproof.objectives import Objective, build, find
from driftproof.rollout.worker import RolloutWorker
from driftproof.run import RunDirectory
from driftproof.runtime.resources import resolve_device
from driftproof.tasks.codec import Codec
from driftproof.tasks.protocol import Task
from driftproof.types import Channel, Prompt, Sampling
from driftproof.verify import Verifier
from driftproof.verify.exact import ExactVerifier
from driftproof.weights.models import inspect_model

if TYPE_CHECKING:
    from driftproof.engines.embedded.engine import EmbeddedEngine
    from driftproof.engines.openai.engine import OpenAIEngine
    from driftproof.engines.vllm.updater import VllmUpdater


def make_objective(config: Config) -> Objective:
    """The objective; its horizon, if not given, is the longest response.

    Raises:
        ObjectiveError: unknown name or field.
    """
    fields = config.objective.fields
    default = find(config.objective.name).aggregation
    if fields.get("aggregation", default) == "seq-mean-token-sum-norm":
        fields = {"horizon": config.sampling.max_tokens} | fields
    return build(config.objective.name, **fields)


def make_task(config: Config) -> Task:
    """The task; where there is a recorded trace, its groups stand behind the task's prompts, or are the task.

    Raises:
        TaskError: unknown task or field, or bad data, with file and line.
    """
    fields = config.task.fields
    path = config.rollouts.path
    if path is None:
        return tasks.build(config.task.name, **fields)
    if config.task.name == "recorded":
        return tasks.build(config.task.name, **fields | {"path": path})
    return tasks.with_recorded(tasks.build(config.task.name, **fields), path)


def make_sampling(config: Config, codec: Codec) -> Sampling:
    return Sampling(**asdict(config.sampling), stop_ids=codec.stop_ids, seed=config.run.seed)


def make_verifier(config: Config, task: Task) -> Verifier:
    """The task's verifier.

    Raises:
        VerifierError: it cannot be imported or started.
    """
    return verify.build(task.verifier, processes=config.verify.processes, timeout_seconds=config.verify.timeout_seconds)


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
    config: Config, directory: RunDirectory, leases: Leases, name: str, phase: Callable[[str], object] = lambda _: None
) -> RolloutWorker:
    task = make_task(config)
    codec = Codec(config.model.path)
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
    live = _open_live(config, directory, task, codec) if config.rollouts.recorded_share != 1 else None
    return RecordedEngine(task.recorded, codec.encode_response, live) if live is None or task.recorded else live


def _open_live(config: Config, directory: RunDirectory, task: Task, codec: Codec) -> Engine:
    if config.engine.name in ("openai", "vllm"):
        urls = config.engine.url or [directory.server_url.read_text()]
        return _open_servers(config, urls, task.train[0], codec, _make_updater(config))
    return open_engine(config, config.model.path)


def make_evaluation_engine(config: Config, prompt: Prompt, codec: Codec) -> Engine:
    """The engine of an evaluation: running servers as they are, no weights go to them; else the model's own weights.

    `prompt` is one of those that it will answer.

    Raises:
        ConfigError: it is asked to launch a server. EngineError: no server answers, or one of them cannot be used.
    """
    if config.engine.launch:
        raise ConfigError(
            "engine.launch starts a server for a training run alone; to evaluate what a running server answers, set "
            "--engine.launch false --engine.url http://127.0.0.1:8000; to evaluate the model directory, "
            "--engine.launch false --engine.name embedded"
        )
    if config.engine.name in ("openai", "vllm"):
        return _open_servers(config, config.engine.url, prompt, codec)
    return open_engine(config, config.model.path)


def _make_updater(config: Config) -> VllmUpdater | None:
    if config.engine.name != "vllm":
        return None
    from driftproof.engines.vllm.updater import Canary, VllmUpdater

    tolerance = config.engine.canary_tolerance
    return VllmUpdater(
        canary=Canary(config.model.path, tolerance=tolerance) if tolerance else None,
        api_key_variable=config.engine.api_key_variable,
    )


def _open_servers(
    config: Config, urls: Sequence[str], prompt: Prompt, codec: Codec, updater: VllmUpdater | None = None
) -> OpenAIEngine:
    from driftproof.engines.openai.engine import OpenAIEngine
    from driftproof.engines.openai.pool import RetryPolicy

    engine = config.engine
    return OpenAIEngine(
        urls,
        vocabulary=inspect_model(config.model.path).vocabulary,
        tokenizer=codec,
        sample_text=prompt.text,
        model=engine.model,
        slots=engine.slots,
        policy=RetryPolicy(timeout_seconds=engine.timeout_seconds, attempts=engine.attempts),
        retokenize=engine.retokenize,
        updater=updater,
        api_key_variable=engine.api_key_variable,
    )


def open_engine(config: Config, model: Path) -> EmbeddedEngine:
    """An embedded engine with the weights of a model directory."""
    from driftproof.engines.embedded.engine import EmbeddedEngine

    device = resolve_device(config.engine.device)
    return EmbeddedEngine.from_directory(model, slots=config.engine.slots, device=device)
