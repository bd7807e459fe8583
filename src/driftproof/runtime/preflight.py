"""Checks before a run starts, and its directory.

Guarantees: every part that can be wrong is made once and every prompt's length is checked, so that bad input is refused
before any process starts.
"""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from driftproof.config import Config
from driftproof.errors import ConfigError, EngineError, InputError, LedgerError, TaskError, command_line
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Plan
from driftproof.metrics.trackers import check_trackers
from driftproof.objectives import Objective
from driftproof.report.trial import trial_lines
from driftproof.run import LOCK, RunDirectory, claimed, partial_name, written_whole
from driftproof.runtime.architecture import check_architecture
from driftproof.runtime.build import limit_task_tokens, make_codec, make_objective, make_task, make_verifier
from driftproof.runtime.resources import count_parameters, resolve_device
from driftproof.tasks.checks import warnings
from driftproof.tasks.codec import Codec
from driftproof.tasks.protocol import Task
from driftproof.types import GROUP_CHANNELS, Channel
from driftproof.verify import BUILT_IN
from driftproof.verify.trial import try_rewards
from driftproof.weights.models import ModelInfo, inspect_model

Say = Callable[[str], object]
"""Told a sentence that a person should read."""


def preflight(config: Config, warn: Say = lambda _: None, tell: Say = lambda _: None) -> Plan:
    """Check everything that can be checked without starting; what the run sets out to do.

    `warn` is told of each thing that can be run and is hardly meant, `tell` of rewards as they were tried.

    Raises:
        ValueError: in the subclass of the room that refuses (ConfigError, ObjectiveError, TaskError, ModelError, ...).
    """
    objective = make_objective(config)
    _check_behavior(config, objective)
    check_trackers(config.tracking)
    for name in (config.engine.device, config.learner.device):
        resolve_device(name)
    model = inspect_model(config.model.path)
    check_architecture(
        config.model.path,
        decoded=config.engine.name == "embedded",
        gradient_checkpointing=config.learner.gradient_checkpointing,
    )
    _check_reference(config, model, objective)
    task = make_task(config)
    if not task.live and config.rollouts.recorded_share != 1:
        raise TaskError(f"task {task.name!r} is for evaluation only; train on math or gsm8k")
    if config.engine.launch:
        from driftproof.engines.vllm.launch import check_environment

        check_environment(config.engine.python)
    _check_servers(config, objective)
    answerable = config.engine.name == "embedded" and not task.recorded_heldout
    if config.evaluation.every and not (answerable and task.heldout[: config.evaluation.prompts]):
        raise ConfigError(
            "evaluation.every needs held-out prompts (evaluation.prompts, and a task that has some) and the embedded "
            "engine; set it to 0 to evaluate before and after only"
        )
    codec = make_codec(config)
    limit_task_tokens(config, task, model, codec)
    _warn_of_lone_responses(config, objective, warn)
    for warning in warnings(task):
        warn(warning)
    if not task.answered:
        _try_rewards(config, task, codec, warn, tell)
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


def longest_texts(config: Config) -> tuple[int, int]:
    """Tokens of the longest prompt, and of the longest response that may be written or is on record."""
    inspect_model(config.model.path)
    task, codec = make_task(config), make_codec(config)
    prompts = (len(codec.encode(prompt)) for prompt in (*task.train, *task.heldout))
    recorded = (len(codec.encode_response(text)) for group in task.recorded for text in group.texts)
    return max(prompts, default=0), max([config.sampling.max_tokens if task.live else 1, *recorded])


def _try_rewards(config: Config, task: Task, codec: Codec, warn: Say, tell: Say) -> None:
    """Score a few right and wrong answers as the run would; refuse a verifier that cannot."""
    names = (task.verifier,) if isinstance(task.verifier, str) else task.verifier
    with closing(make_verifier(config, task)) as verifier:
        prompts, built_in = task.live or task.heldout, all(name in BUILT_IN for name in names)
        trial = try_rewards(", ".join(names), verifier, prompts, task.gold, built_in=built_in)
    tokens = codec.encode(trial.tried[0].prompt)
    tell(trial_lines(trial, codec.show(tokens), len(tokens)))
    for sentence in trial.warnings:
        warn(sentence)


def _check_behavior(config: Config, objective: Objective) -> None:
    """Refuse an objective that needs behavior log-probs where nobody can give them."""
    if Channel.BEHAVIOR_LOGPROBS not in objective.needs:
        return
    needs, instead = f"objective {objective.name!r} needs behavior_logprobs", "that needs none, like asympo or spo"
    if config.rollouts.path is not None:
        raise ConfigError(f"{needs}, which recorded traces do not have; use one {instead}")
    if config.engine.retokenize:
        raise ConfigError(
            f"{needs}, which belong to tokens that the learner's tokenizer did not make; set engine.retokenize to "
            f"false, or use an objective {instead}"
        )
    if config.sampling.top_p < 1 or config.sampling.top_k > 0:
        raise ConfigError(
            f"{needs} of the whole distribution, but sampling.top_p={config.sampling.top_p} and "
            f"sampling.top_k={config.sampling.top_k} cut it; set top_p=1 and top_k=0, or use an objective {instead}"
        )


def _warn_of_lone_responses(config: Config, objective: Objective, warn: Say) -> None:
    """Tell that groups of one response teach nothing where every reward is compared with its own group's."""
    # A critic gives PPO something else to compare with.
    if (
        config.rollouts.group_size == 1
        and config.rollouts.recorded_share != 1
        and Channel.VALUES not in objective.needs
    ):
        warn(
            "rollouts.group_size is 1: a lone response is compared with itself, so its advantage (advantages.baseline "
            f"{config.advantages.baseline!r}) is always 0, and no reward teaches anything; set it to 4 or more"
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
    check_architecture(config.model.reference, decoded=False)


def prepare_directory(config: Config, plan: Plan) -> RunDirectory:
    """Make the run directory, which must be new or empty, with its configuration and ledger; or change nothing.

    Raises:
        ConfigError: it is in use, cannot be written, or there is no space for the run.
    """
    path, made = config.run.directory or Path("runs", config.run.name), list[Path]()
    try:
        path = path if config.run.directory else _free_name(path)
        _check_free(path)
        made = [each for each in (path, *path.parents) if not each.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with claimed(path):
            # Another start may have been faster.
            _check_free(path)
            return _prepare(RunDirectory(path=path), config, plan, made)
    except OSError as error:
        raise ConfigError(f"run directory {path} cannot be written: {error.strerror}") from error


def _prepare(directory: RunDirectory, config: Config, plan: Plan, made: list[Path]) -> RunDirectory:
    try:
        check_space(config, directory.path)
        directory.logs.mkdir(exist_ok=True)
        with written_whole(directory.config) as partial:
            partial.write_text(config.to_toml(), encoding="utf-8")
        Ledger.create(directory.ledger, plan).close()
    except (OSError, LedgerError, sqlite3.Error) as error:
        _take_back(directory, made)
        problem = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"run directory {directory.path} cannot be written: {problem}") from error
    except InputError:
        _take_back(directory, made)
        raise
    return directory


def _take_back(directory: RunDirectory, made: list[Path]) -> None:
    """Remove what was made of a run directory; what cannot be removed does not keep a later start from it."""
    config, ledger = directory.config, partial_name(directory.ledger)
    with suppress(OSError):
        for file in (config, partial_name(config), *directory.path.glob(f"{ledger.name}*"), directory.path / LOCK):
            file.unlink(missing_ok=True)
        if directory.logs.exists():
            directory.logs.rmdir()
        for each in made:
            each.rmdir()


def _check_free(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"run directory {path} is a file; choose another")
    if path.is_dir() and {each.name for each in path.iterdir()} - {LOCK} and not is_unbegun(path):
        raise ConfigError(
            f"run directory {path} is not empty; choose another, or go on with {command_line('--resume', path)}"
        )


def is_unbegun(path: Path) -> bool:
    """Whether a directory holds no more than a start leaves that was broken off before its ledger was made."""
    directory = RunDirectory(path=path)
    if not directory.config.is_file() or (directory.logs.is_dir() and any(directory.logs.iterdir())):
        return False
    partial = (partial_name(directory.config).name, partial_name(directory.ledger).name)
    others = {each.name for each in path.iterdir() if not each.name.startswith(partial)}
    return others <= {LOCK, directory.config.name, directory.logs.name}


def _free_name(wanted: Path) -> Path:
    path, number = wanted, 2
    while path.exists() and (not path.is_dir() or (any(path.iterdir()) and not is_unbegun(path))):
        path, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return path


def check_space(config: Config, path: Path) -> None:
    """Refuse a disk without room for snapshots and checkpoints, which hold float32 whatever the base model is of."""
    weights = 4 * count_parameters(config.model.path)
    # Snapshots, one being written, and three checkpoints of weights and two moments.
    needed = weights * (config.learner.keep_snapshots + 1 + 3 * 3)
    free = shutil.disk_usage(path).free
    if free < needed:
        raise ConfigError(
            f"the disk of {path} has {free / 1e9:.2f} GB free; snapshots and checkpoints of this model need about "
            f"{needed / 1e9:.2f} GB"
        )
