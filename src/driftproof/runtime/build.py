"""From a configuration to the parts of a run: the only room that knows both.

Guarantees: `preflight` makes every part that can be wrong and checks every prompt's length, so that bad input is
refused before any process starts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from driftproof import tasks, verify
from driftproof.config import Config
from driftproof.engines.protocol import Engine
from driftproof.engines.recorded import RecordedEngine
from driftproof.errors import ConfigError, EngineError, TaskError
from driftproof.learner.learner import Learner
from driftproof.learner.policy import Policy
from driftproof.ledger.leases import Leases
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.reader import LedgerReader
from driftproof.ledger.records import Plan
from driftproof.metrics.trackers import Tracker, check_trackers, open_trackers
from driftproof.objectives import Objective, build, find
from driftproof.rollout.worker import RolloutWorker
from driftproof.run import RunDirectory
from driftproof.tasks.codec import Codec
from driftproof.tasks.protocol import Task
from driftproof.types import GROUP_CHANNELS, Channel, Prompt, Sampling
from driftproof.verify import Verifier
from driftproof.verify.exact import ExactVerifier
from driftproof.weights.models import ModelInfo, inspect_model

if TYPE_CHECKING:
    from driftproof.engines.embedded.engine import EmbeddedEngine
    from driftproof.engines.openai.engine import OpenAIEngine
    from driftproof.engines.vllm.updater import VllmUpdater


def preflight(config: Config) -> Plan:
    """Check everything that can be checked without starting; what the run sets out to do.

    Raises:
        ValueError: in the subclass of the room that refuses (ConfigError, ObjectiveError, TaskError, ModelError, ...).
    """
    objective = make_objective(config)
    check_trackers(wandb=config.tracking.wandb, trackio=config.tracking.trackio)
    for name in (config.engine.device, config.learner.device):
        resolve_device(name)
    model = inspect_model(config.model.path)
    _check_reference(config, model, objective)
    task = make_task(config)
    if not task.live and config.rollouts.recorded_share != 1:
        raise TaskError(f"task {task.name!r} is for evaluation only; train on math or gsm8k")
    if config.engine.launch:
        from driftproof.engines.vllm.launch import check_environment

        check_environment(config.engine.python)
    _check_servers(config, objective)
    if not task.answered:
        make_verifier(config, task).close()
    answerable = config.engine.name == "embedded" and not task.recorded_heldout
    if config.evaluation.every and not (answerable and task.heldout[: config.evaluation.prompts]):
        raise ConfigError(
            "evaluation.every needs held-out prompts (evaluation.prompts, and a task that has some) and the embedded "
            "engine; set it to 0 to evaluate before and after only"
        )
    codec = Codec(config.model.path)
    _check_lengths(config, model, task, codec)
    return Plan(
        seed=config.run.seed,
        prompts=len(task.live),
        groups_per_step=config.learner.groups_per_step,
        max_staleness=config.rollouts.max_staleness,
        steps=config.run.steps,
        publish_every=config.learner.publish_every,
        channels=objective.needs & GROUP_CHANNELS,
        model=model.fingerprint,
        recorded_prompts=len(task.recorded),
        recorded_share=config.rollouts.recorded_share or 0.0,
    )


def _check_servers(config: Config, objective: Objective) -> None:
    """Refuse servers of which none answers, or one that cannot give what the objective needs."""
    if not config.engine.url:
        return
    from driftproof.engines.http import Unreachable
    from driftproof.engines.openai.probe import probe

    silent = []
    for url in config.engine.url:
        try:
            facts = probe(url, model=config.engine.model, api_key_variable=config.engine.api_key_variable)
        except Unreachable as error:
            silent.append(str(error))
            continue
        if Channel.BEHAVIOR_LOGPROBS in objective.needs and not facts.logprobs:
            raise ConfigError(
                f"objective {objective.name!r} needs behavior_logprobs, which {facts.url} ({facts.dialect}) does not "
                "give; use another server, or an objective that needs none, like asympo or spo"
            )
    if len(silent) == len(config.engine.url):
        raise EngineError(f"no server answers: {'; '.join(silent)}; start it, or correct --engine.url")


def make_objective(config: Config) -> Objective:
    """The objective, refused where its channels cannot be had; its horizon, if not given, is the longest response.

    Raises:
        ObjectiveError: unknown name or field. ConfigError: a channel that the engine or the sampling cannot give.
    """
    fields = config.objective.fields
    default = find(config.objective.name).aggregation
    if fields.get("aggregation", default) == "seq-mean-token-sum-norm":
        fields = {"horizon": config.sampling.max_tokens} | fields
    objective = build(config.objective.name, **fields)
    if Channel.BEHAVIOR_LOGPROBS in objective.needs:
        needs = f"objective {objective.name!r} needs behavior_logprobs"
        if config.rollouts.path is not None:
            raise ConfigError(
                f"{needs}, which recorded traces do not have; use one that needs none, like asympo or spo"
            )
        if config.engine.retokenize:
            raise ConfigError(
                f"{needs}, which belong to tokens that the learner's tokenizer did not make; set engine.retokenize to "
                "false, or use an objective that needs none, like asympo or spo"
            )
        if config.sampling.top_p < 1 or config.sampling.top_k > 0:
            raise ConfigError(
                f"{needs} of the whole distribution, but sampling.top_p={config.sampling.top_p} and "
                f"sampling.top_k={config.sampling.top_k} cut it; set top_p=1 and top_k=0, or use an "
                "objective that needs none, like asympo or spo"
            )
    return objective


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
    return Sampling(
        max_tokens=config.sampling.max_tokens,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        top_k=config.sampling.top_k,
        stop_ids=codec.stop_ids,
        seed=config.run.seed,
    )


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


def make_trackers(config: Config, directory: RunDirectory, ledger: LedgerReader) -> list[Tracker]:
    return open_trackers(
        directory.path,
        ledger.steps(),
        tensorboard=config.tracking.tensorboard,
        wandb=config.tracking.wandb,
        trackio=config.tracking.trackio,
    )


def make_worker(config: Config, directory: RunDirectory, leases: Leases, name: str) -> RolloutWorker:
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
    from driftproof.engines.vllm.canary import Canary
    from driftproof.engines.vllm.updater import VllmUpdater

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


def resolve_device(name: str) -> str:
    """`auto` is the first GPU where there is one.

    Raises:
        ConfigError: a device this machine does not have.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.split(":")[0]
    if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
        return name
    raise ConfigError(f"device {name!r} is not available here; valid: auto, cpu" + ", cuda" * torch.cuda.is_available())


def prepare_directory(config: Config, plan: Plan) -> RunDirectory:
    """Make the run directory with its configuration and ledger.

    Raises:
        ConfigError: it cannot be written, holds something already, or the disk has no room for the snapshots.
    """
    path = config.run.directory or _free_name(Path("runs"), config.run.name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ConfigError(f"run directory {path} is not empty; choose another, or go on with --resume {path}")
        directory = RunDirectory(path=path)
        directory.logs.mkdir()
        directory.config.write_text(config.to_toml())
    except OSError as error:
        raise ConfigError(f"run directory {path} cannot be written: {error.strerror}") from error
    check_space(config, path)
    Ledger.create(directory.ledger, plan).close()
    return directory


def check_space(config: Config, path: Path) -> None:
    """Refuse a disk without room for snapshots and checkpoints.

    Raises:
        ConfigError: with what is needed and what is free.
    """
    weights = sum(file.stat().st_size for file in config.model.path.glob("*.safetensors"))
    # Snapshots, one being written, and three checkpoints of weights and two moments.
    needed = weights * (config.learner.keep_snapshots + 1 + 3 * 3)
    free = shutil.disk_usage(path).free
    if free < needed:
        raise ConfigError(
            f"the disk of {path} has {free / 1e9:.2f} GB free; snapshots and checkpoints of this model need about "
            f"{needed / 1e9:.2f} GB"
        )


def _check_reference(config: Config, model: ModelInfo, objective: Objective) -> None:
    if config.model.reference is None:
        return
    if Channel.REFERENCE_LOGPROBS not in objective.needs:
        raise ConfigError(
            f"model.reference is given, but objective {objective.name!r} has no KL term; set --objective.kl above 0"
        )
    reference = inspect_model(config.model.reference)
    if reference.vocabulary != model.vocabulary:
        raise ConfigError(
            f"model.reference {reference.path} has a vocabulary of {reference.vocabulary}, the model one of "
            f"{model.vocabulary}; a KL term needs the same tokens in both"
        )


def _free_name(parent: Path, name: str) -> Path:
    path, number = parent / name, 2
    while path.exists() and any(path.iterdir()):
        path, number = parent / f"{name}-{number}", number + 1
    return path


def _check_lengths(config: Config, model: ModelInfo, task: Task, codec: Codec) -> None:
    _check_recorded_lengths(config, model, (*task.recorded, *task.recorded_heldout), codec)
    room = model.context - config.sampling.max_tokens
    answered = () if task.recorded_heldout else task.heldout
    longest = max(((len(codec.encode(p)), p.index) for p in (*task.live, *answered)), default=(0, 0))
    if longest[0] > room:
        raise TaskError(
            f"prompt {longest[1]} of task {task.name!r} has {longest[0]} tokens; with sampling.max_tokens="
            f"{config.sampling.max_tokens} the model's context of {model.context} leaves {room}. "
            "Lower sampling.max_tokens, drop the long prompts, or use a model with a longer context"
        )


def _check_recorded_lengths(
    config: Config, model: ModelInfo, groups: Sequence[tasks.RecordedGroup], codec: Codec
) -> None:
    for group in groups:
        length = len(codec.encode(group.prompt)) + max(len(codec.encode_response(text)) for text in group.texts)
        if length > model.context:
            raise TaskError(
                f"{config.rollouts.path}: the prompt {group.prompt.text[:60]!r} and its longest response have "
                f"{length} tokens, the model's context is {model.context}; drop the group, or use another model"
            )


def limit_threads(threads: int | Literal["auto"]) -> None:
    """Threads of this process, for torch and for whatever it loads; one where nobody has counted the cores."""
    threads = 1 if threads == "auto" else threads
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def quiet_libraries() -> None:
    """transformers' progress bars have no place in our display; what it has to say of errors stays."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
