"""The devices, cores and memory of this machine: what a recipe needs of them, and what its `auto` settings come to.

Guarantees: nothing is downloaded, loaded or started; of a model only `config.json` and the headers of its weights are
read. Tiny models always get one thread and the largest budget, so that their runs are the same on every machine.
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from driftproof.config import Config
from driftproof.errors import ConfigError, DamageError, ModelError
from driftproof.learner.settings import MOST_POSITIONS
from driftproof.runtime.memory import engine_memory, learner_memory
from driftproof.weights.files import read_shapes
from driftproof.weights.models import UNTRUSTED, readable
from driftproof.weights.names import is_weight

TINY_PARAMETERS = 10_000_000
"""Parameters up to which a second thread does not make a model faster, and memory is not a question."""
LEAST_POSITIONS = 1024
"""Smallest budget that `auto` tries."""
USABLE = 0.8
"""Share of a device's memory that weights, activations and caches may take; the rest is for libraries and others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """Memory that one process of a run needs."""

    process: str
    device: str
    parts: dict[str, int]
    """Bytes, by their purpose."""
    available: int
    """Bytes of memory of the whole device."""
    count: int = 1
    """Processes of that kind."""
    advice: str = ""
    """The settings that lower its needs most."""

    @property
    def needed(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


def requirements(config: Config, prompt_tokens: int = 0, response_tokens: int | None = None) -> list[Requirement]:
    """Needs of the learner and of each rollout worker, where all prompts and responses have so many tokens (None: all
    that a response may have)."""
    response_tokens = response_tokens or config.sampling.max_tokens
    model = read_config(config.model.path)
    if config.learner.token_budget == "auto":
        config = _with_budget(config, _fitting_budget(config, model))
    rows, row_tokens = largest_micro_batch(config, prompt_tokens, response_tokens)
    learner = _learner_of(config, model, rows, row_tokens)
    if config.objective.fields.get("kl"):
        learner["reference"] = learner["weights"]
    device = resolve_device(config.learner.device)
    needs = [
        Requirement(
            process="learner",
            device=device,
            parts=learner,
            available=memory_of(device),
            advice=_learner_advice(config, learner, rows, memory_of(device)),
        )
    ]
    if config.engine.name == "embedded" and config.rollouts.recorded_share != 1:
        device = resolve_device(config.engine.device)
        slots = min(config.engine.slots, _most_under_way(config))
        parts = engine_memory(model, slots=slots, tokens=prompt_tokens + config.sampling.max_tokens)
        workers = config.rollouts.workers + (config.evaluation.every > 0)
        needs.append(
            Requirement(
                process="each worker",
                device=device,
                parts=parts,
                available=memory_of(device),
                count=workers,
                advice=_worker_advice(config, parts, memory_of(device)),
            )
        )
    return needs


def lacking_memory(needs: list[Requirement]) -> list[str]:
    """A sentence for each process that a device has no memory for, or for all of them together, with what to lower."""
    alone = [
        f"{need.process} needs more memory than {need.device} has; {need.advice}" for need in needs if not need.fits
    ]
    if alone:
        return alone
    together = []
    for device in dict.fromkeys(need.device for need in needs):
        here = [need for need in needs if need.device == device]
        needed = sum(need.needed * need.count for need in here)
        if needed > here[0].available:
            largest = max(here, key=lambda need: need.needed * need.count)
            several = f"fewer rollouts.workers, or {largest.advice}" if here[-1].count > 1 else largest.advice
            together.append(
                f"all processes on {device} together need {needed / 2**30:.2f} GiB of its "
                f"{here[0].available / 2**30:.2f}; {several}"
            )
    return together


def largest_micro_batch(config: Config, prompt_tokens: int, response_tokens: int) -> tuple[int, int]:
    """Rows of the largest micro-batch, and tokens of each: a prompt with as many responses of its group as fit."""
    # The last token of a response is predicted, but not read.
    learner, size, response = config.learner, config.rollouts.group_size, max(response_tokens - 1, 1)
    together = min(max((learner.row_tokens - prompt_tokens) // response, 1), size)
    row_tokens = prompt_tokens + together * response
    rows = learner.groups_per_step // learner.updates_per_step * -(-size // together)
    return max(min(learner.positions // row_tokens, rows), 1), row_tokens


def _most_under_way(config: Config) -> int:
    """Responses that may be written at once, however many slots there are."""
    ahead = 1 + config.rollouts.max_staleness
    return config.learner.groups_per_step * ahead * config.rollouts.group_size


def _learner_advice(config: Config, parts: dict[str, int], rows: int, available: int) -> str:
    if sum(size for name, size in parts.items() if name not in ("activations", "logits")) > available:
        return "use a smaller model"
    if rows > 1:
        return f"lower learner.token_budget, which is {config.learner.positions:,}"
    keep = "" if config.learner.gradient_checkpointing else "set learner.gradient_checkpointing to true, or "
    return f"{keep}lower sampling.max_tokens, which is {config.sampling.max_tokens:,}"


def _worker_advice(config: Config, parts: dict[str, int], available: int) -> str:
    if parts["weights"] > available:
        return "use a smaller model"
    slots, tokens = config.engine.slots, config.sampling.max_tokens
    return f"lower engine.slots, which is {slots:,}, or sampling.max_tokens, which is {tokens:,}"


def resolve(config: Config) -> Config:
    """The configuration with its `auto` numbers settled and its paths absolute, once for all of a run.

    Raises:
        ModelError: the model directory cannot be used. ConfigError: a device this machine does not have.
    """
    config = with_absolute_paths(config)
    learner, engine = config.learner, config.engine
    if "auto" not in (learner.token_budget, learner.threads, engine.threads):
        return config
    parameters = count_parameters(config.model.path)
    in_turns = config.runtime.mode == "sync"
    ours, theirs = share_cores(_cores(), parameters, config.rollouts.workers, in_turns=in_turns)
    budget = learner.token_budget
    if budget == "auto":
        tiny = parameters <= TINY_PARAMETERS
        budget = MOST_POSITIONS if tiny else _fitting_budget(config, read_config(config.model.path))
    learner = replace(learner, token_budget=budget, threads=ours if learner.threads == "auto" else learner.threads)
    engine = replace(engine, threads=theirs if engine.threads == "auto" else engine.threads)
    return config.model_copy(update={"learner": learner, "engine": engine})


def with_absolute_paths(config: Config) -> Config:
    """The configuration as it can be read in any directory; what is no path here, like a model of a hub, stays."""
    sections = {"model": ("path", "reference"), "rollouts": ("path",), "engine": ("python",)}
    update: dict[str, Any] = {
        section: replace(table, **{key: _absolute(getattr(table, key)) for key in keys})
        for section, keys in sections.items()
        if (table := getattr(config, section))
    }
    fields: dict[str, Any] = {
        key: _absolute(config.task.fields[key]) for key in ("path", "heldout") if key in config.task.fields
    }
    return config.model_copy(update=update | {"task": config.task.model_copy(update=fields)})


def _absolute(path: Any) -> Any:
    if isinstance(path, str | Path) and Path(path).exists():
        return type(path)(Path(path).absolute())
    return path


def share_cores(cores: int, parameters: int, workers: int, *, in_turns: bool) -> tuple[int, int]:
    """Threads of the learner and of each worker, by who is busy.

    A learner is busy all the time, while workers with a model of some size wait for it most of theirs: it gets three
    quarters of the cores, and they share the rest. In turns, each side has all.
    """
    if parameters <= TINY_PARAMETERS:
        return 1, 1
    if in_turns:
        return cores, cores
    return cores - cores // 4, max(cores // 4 // max(workers, 1), 1)


def evaluation_threads(config: Config) -> int:
    """Threads of an engine that has the machine to itself."""
    if config.engine.threads != "auto":
        return config.engine.threads
    return share_cores(_cores(), count_parameters(config.model.path), 1, in_turns=True)[1]


def count_parameters(model: Path) -> int:
    """Parameters of a model directory, from the headers of its weights."""
    try:
        return sum(math.prod(shape) for name, shape in read_shapes(model).items() if is_weight(name))
    except (DamageError, OSError) as error:
        raise ModelError(f"the weights of {model} cannot be read: {error}") from error


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _fitting_budget(config: Config, model: Any) -> int:
    """The largest budget with which a learner fits beside the workers on its device."""
    device = resolve_device(config.learner.device)
    room = USABLE * memory_of(device)
    if config.engine.name == "embedded" and resolve_device(config.engine.device) == device:
        workers = 1 if config.runtime.mode == "sync" else config.rollouts.workers
        room -= workers * sum(_worker(config, model).values())
    positions = MOST_POSITIONS
    while positions > LEAST_POSITIONS and sum(_learner(_with_budget(config, positions), model).values()) > room:
        positions //= 2
    return positions


def _with_budget(config: Config, positions: int) -> Config:
    return config.model_copy(update={"learner": replace(config.learner, token_budget=positions)})


def _learner(config: Config, model: Any) -> dict[str, int]:
    """Needs of a learner, whatever the prompts are: its budget is filled with rows of the usual length."""
    row_tokens = min(_longest(config), config.learner.positions)
    return _learner_of(config, model, max(config.learner.positions // row_tokens, 1), row_tokens)


def _learner_of(config: Config, model: Any, rows: int, row_tokens: int) -> dict[str, int]:
    learner = config.learner
    return learner_memory(
        model,
        rows=rows,
        row_tokens=row_tokens,
        bfloat16=learner.dtype == "bfloat16" or (learner.dtype == "auto" and resolve_device(learner.device) != "cpu"),
        gradient_checkpointing=learner.gradient_checkpointing,
    )


def _worker(config: Config, model: Any) -> dict[str, int]:
    return engine_memory(model, slots=config.engine.slots, tokens=_longest(config))


def _longest(config: Config) -> int:
    """Tokens of the longest row or response."""
    return max(config.learner.row_tokens, config.sampling.max_tokens)


def memory_of(device: str) -> int:
    """Bytes of a device in all."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resolve_device(name: str) -> str:
    """The device by that name; `auto` is the first GPU, if there is one."""
    kinds = ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
    if name == "auto":
        return kinds[-1]
    if name.split(":")[0] in kinds:
        return name
    raise ConfigError(f"device {name!r} is not available here; valid: auto, {', '.join(kinds)}")


def limit_threads(threads: int | Literal["auto"]) -> None:
    """Threads of this process, for torch and for whatever it loads."""
    torch.set_num_threads(thread_count(threads))
    os.environ["OMP_NUM_THREADS"] = str(thread_count(threads))


def thread_count(threads: int | Literal["auto"]) -> int:
    """A number of threads; one where `auto` has not been resolved."""
    return 1 if threads == "auto" else threads


def quiet_libraries() -> None:
    """Silence transformers' progress bars, which have no place in our display; its errors stay."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def read_config(model: Path) -> Any:
    """The transformers configuration of a model directory; only its `config.json` is read.

    Raises:
        ModelError: there is none, or transformers knows no causal language model by it.
    """
    from transformers import AutoConfig

    with readable(f"{model} has no usable config.json"):
        return AutoConfig.from_pretrained(model, **UNTRUSTED)
