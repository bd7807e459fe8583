"""One tree of settings: a TOML recipe, then dotted overrides, checked before anything starts.

Guarantees: a key that does not exist is an error that names the nearest valid one; a resolved configuration written to
TOML and read again is the same configuration.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, overload

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from driftproof.errors import ConfigError, unknown_name


class Section(BaseModel):
    # Without "constants" an infinite field of an objective would be written as no value at all.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Open(BaseModel):
    """A section with a `name` and the fields of whatever bears that name."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class RunSection(Section):
    name: str = "run"
    """Runs go to `runs/NAME`, or `runs/NAME-2` and so on where that exists."""
    directory: Path | None = None
    """The run directory itself; must be new or empty."""
    seed: int = 0
    steps: int = Field(default=100, ge=1)


class ModelSection(Section):
    path: Path
    """A Hugging Face model directory."""
    reference: Path | None = None
    """The policy that a KL term of the objective pulls to; the model at `path` where not given."""


class TaskSection(Open):
    """`name`, and the fields of that task (driftproof.tasks)."""

    name: str = "arithmetic"


class ObjectiveSection(Open):
    """`name`, and the fields of that objective (driftproof.objectives)."""

    name: str = "asympo"


class AdvantagesSection(Section):
    baseline: Literal["mean", "mean-std", "leave-one-out"] = "mean"


class SamplingSection(Section):
    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0, description="also the temperature at which the learner scores")
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)


def _live_engine(name: object) -> object:
    if name == "recorded":
        raise ValueError(
            "a recorded trace is no engine any more; leave engine.name out and set rollouts.recorded_share = 1 beside "
            "rollouts.path, to train on the trace alone"
        )
    return name


class EngineSection(Section):
    name: Annotated[Literal["embedded", "openai", "vllm"], BeforeValidator(_live_engine)] = "embedded"
    slots: int = Field(default=128, ge=1)
    """Responses written at once (engines `openai` and `vllm`: by each server)."""
    threads: int = Field(default=1, ge=1)
    device: str = "auto"
    url: Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = ()
    """Servers of the engines `openai` and `vllm`: one address or several, each of one server."""
    model: str = ""
    """The name that the servers know their model by; empty is the first of each."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """Of one call to a server."""
    attempts: int = Field(default=5, ge=1)
    """Calls for one request."""
    retokenize: bool = False
    """Take text from the servers, and let the learner's tokenizer make tokens of it."""
    api_key_variable: str = ""
    """The environment variable that holds the servers' API key; empty is none."""
    launch: bool = False
    """Start, watch and stop a server of the engine `vllm`."""
    python: Path = Path(".venv-vllm/bin/python")
    """The interpreter of vLLM's environment, which `make vllm` makes."""
    arguments: list[str] = []
    """More of vLLM's own command-line arguments."""
    start_seconds: float = Field(default=600.0, gt=0)
    """How long a server may take until it answers."""
    canary_tolerance: float = Field(default=1e-3, ge=0)
    """Nats by which a server's log-probs may differ from those of new weights; 0 does not look."""


class RolloutsSection(Section):
    workers: int = Field(default=1, ge=0)
    """Built-in rollout workers; 0: all groups come through `driftproof inbox`."""
    group_size: int = Field(default=8, ge=1)
    max_staleness: int = Field(default=4, ge=0)
    """Steps the rollout side may be ahead; 0 is synchronous."""
    lease_seconds: float = Field(default=120.0, gt=0)
    path: Path | None = None
    """A recorded trace to train on, in the share below."""
    recorded_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the groups that are recorded; the rest is live. 1 trains on the trace alone."""


class VerifySection(Section):
    processes: int = Field(default=1, ge=1)
    timeout_seconds: float = Field(default=5.0, gt=0)


class LearnerSection(Section):
    groups_per_step: int = Field(default=16, ge=1)
    updates_per_step: int = Field(default=1, ge=1)
    """Optimizer updates of a step: its groups are dealt out to so many, one after the other."""
    lr: float = Field(default=1e-6, gt=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    token_budget: int = Field(default=16384, ge=1)
    row_tokens: int = Field(default=512, ge=0)
    gradient_checkpointing: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass; weights stay float32. `auto` is bfloat16 on GPUs that have it."""
    entropy: bool = True
    threads: int = Field(default=1, ge=1)
    device: str = "auto"
    publish_every: int = Field(default=1, ge=1)
    """Steps between snapshots; always 1 where max_staleness is 0."""
    keep_snapshots: int = Field(default=3, ge=2)
    checkpoint_every: int = Field(default=50, ge=1)
    keep_groups: int = Field(default=0, ge=0)
    """Steps whose groups keep their tokens and rewards in the ledger; older ones are pruned at checkpoints; 0: none."""
    on_collapse: Literal["warn", "stop", "off"] = "warn"
    """What a sign of collapse is answered with: an event, a clean stop besides, nothing."""
    max_skipped: int = Field(default=10, ge=1)
    """Steps in a row without a finite loss and gradient before the run is stopped."""


class RuntimeSection(Section):
    mode: Literal["async", "sync"] = "async"
    stall_seconds: float = Field(default=600.0, gt=0)
    """Longest time without a new group or a finished step; the run is then stopped, and says who waits for whom."""
    start_seconds: float = Field(default=3600.0, gt=0)
    """The same until the first step is done and after the last: models are loaded, held-out prompts evaluated."""
    silent_seconds: float = Field(default=300.0, gt=0)
    """A rollout worker that has not reported for so long (at least `rollouts.lease_seconds`) is killed and replaced."""
    max_restarts: int = Field(default=3, ge=0)
    """Times each rollout worker is started again after dying."""


class EvaluationSection(Section):
    prompts: int = Field(default=512, ge=0)
    """Held-out prompts before and after; 0 is none."""
    every: int = Field(default=0, ge=0)
    """Steps from one evaluation to the next during training, in a process of its own; 0 is none."""
    samples: int = Field(default=4, ge=1)
    """Sampled responses per prompt; one greedy response is added."""


class TrackingSection(Section):
    tensorboard: bool = True
    wandb: str = ""
    """Weights & Biases project; empty is off."""
    trackio: str = ""
    """Trackio project; empty is off."""


class Config(Section):
    run: RunSection = RunSection()
    model: ModelSection
    task: TaskSection = TaskSection()
    objective: ObjectiveSection = ObjectiveSection()
    advantages: AdvantagesSection = AdvantagesSection()
    sampling: SamplingSection = SamplingSection()
    engine: EngineSection = EngineSection()
    rollouts: RolloutsSection = RolloutsSection()
    verify: VerifySection = VerifySection()
    learner: LearnerSection = LearnerSection()
    runtime: RuntimeSection = RuntimeSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        self._check_recorded()
        if self.engine.launch and (self.engine.name != "vllm" or self.engine.url):
            raise ValueError("engine.launch starts a server of the engine 'vllm', and has no engine.url beside it")
        if (self.engine.name in ("openai", "vllm")) != bool(self.engine.url or self.engine.launch):
            raise ValueError(
                "engine.name 'openai' or 'vllm' and engine.url belong together: --engine.url http://127.0.0.1:8000 "
                "(or --engine.name vllm --engine.launch true)"
            )
        learner = self.learner
        if learner.groups_per_step % learner.updates_per_step:
            raise ValueError(
                f"learner.groups_per_step {learner.groups_per_step} cannot be dealt out to learner.updates_per_step "
                f"{learner.updates_per_step} equal updates; choose a divisor"
            )
        if self.runtime.mode == "sync" and self.rollouts.workers != 1:
            raise ValueError("runtime.mode 'sync' has one rollout worker; rollouts.workers must be 1")
        return self

    def _check_recorded(self) -> None:
        path, share = self.rollouts.path, self.rollouts.recorded_share
        if (path is None) != (share is None):
            raise ValueError(
                "rollouts.path and rollouts.recorded_share belong together: a recorded trace and its share of the "
                f"groups, like 0.25, or 1 for the trace alone; got rollouts.path {path} and rollouts.recorded_share "
                f"{share}"
            )
        if self.task.name == "recorded" and share != 1:
            raise ValueError(
                "task.name 'recorded' holds out a part of a recorded trace and trains on the rest, so nothing is "
                "written live: give rollouts.path, the trace's file, and rollouts.recorded_share 1; "
                f"got rollouts.path {path} and rollouts.recorded_share {share}"
            )
        if share == 1 and self.engine.name != "embedded":
            raise ValueError(
                "rollouts.recorded_share 1 leaves nothing to write for the servers of engine.name "
                f"{self.engine.name!r}; leave out engine.name, engine.url and engine.launch"
            )
        if share is not None and self.rollouts.workers == 0:
            raise ValueError(
                "rollouts.recorded_share needs a built-in worker: the recorded groups are never handed out by the "
                "inbox, so with rollouts.workers 0 nobody would write them"
            )

    @property
    def max_staleness(self) -> int:
        """0 where nothing overlaps."""
        return 0 if self.runtime.mode == "sync" else self.rollouts.max_staleness

    def to_toml(self) -> str:
        """The whole resolved tree."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The tree that `to_toml` wrote."""
        return cls.model_validate(tomllib.loads(text))


class LabObjective(Open):
    """An objective of a grid: its `name` and fields, and what the lab does with it."""

    label: str = ""
    """What it is called in tables and pictures; its name where not given."""
    baseline: Literal["mean", "mean-std", "leave-one-out"] = "mean"
    lr: float | None = Field(default=None, gt=0)
    """Learning rate in the view "given"; that of the learner where not given."""


class LabSection(Section):
    """A grid of objectives x staleness x learning rates x seeds."""

    directory: Path | None = None
    """Where the results go; `labs/NAME of the run` where not given. What is there already is not run again."""
    processes: int = Field(default=0, ge=0)
    """Runs at a time, one thread each; 0: as many as there are cores."""
    objectives: list[LabObjective] = Field(min_length=1)
    staleness: list[Annotated[int, Field(ge=0)]] = Field(default=[0, 4, 16, 64], min_length=1)
    """Exact lag, or the period, in updates; without meaning under a replay."""
    schedule: Literal["lag", "periodic", "replay"] = "lag"
    replay: Path | None = None
    """A run directory whose ages are replayed."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0, 1, 2, 3, 4], min_length=1)
    views: list[Literal["given", "tuned", "matched"]] = Field(default=["given"], min_length=1)
    """`given`: every objective at its `lr`, else at that of the learner. `tuned`: each at its own best of
    `learning_rates` at staleness 0. `matched`: all at that of the learner, every gradient scaled to one norm."""
    learning_rates: list[Annotated[float, Field(gt=0)]] = []
    tuning_seeds: list[Annotated[int, Field(ge=0)]] = [1000, 1001]
    matched_grad_norm: float = Field(default=1e-3, gt=0)
    """So small that clipping to it always acts."""
    evaluate_every: int = Field(default=10, ge=1)
    """Steps."""

    @model_validator(mode="after")
    def _consistent(self) -> LabSection:
        if (self.schedule == "replay") != (self.replay is not None):
            raise ValueError("schedule 'replay' and a run directory in `replay` belong together")
        if "tuned" in self.views and not (self.learning_rates and self.tuning_seeds):
            raise ValueError("the view 'tuned' needs learning_rates and tuning_seeds")
        labels = [objective.label or objective.name for objective in self.objectives]
        twice = {label for label in labels if labels.count(label) > 1}
        if twice:
            raise ValueError(f"objectives share the label {sorted(twice)[0]!r}; give each a `label` of its own")
        return self


class LabConfig(Config):
    """A recipe of the lab: that of a run, and the grid over it."""

    lab: LabSection

    @model_validator(mode="after")
    def _live(self) -> LabConfig:
        if self.rollouts.recorded_share is not None:
            raise ValueError("the lab writes its own responses, all of them live; leave out rollouts.recorded_share")
        return self


C = TypeVar("C", bound=Config)


@overload
def load_config(recipe: Path | None, overrides: Sequence[str] = ()) -> Config: ...


@overload
def load_config(recipe: Path | None, overrides: Sequence[str], kind: type[C]) -> C: ...


def load_config(recipe: Path | None, overrides: Sequence[str] = (), kind: type[Config] = Config) -> Config:
    """A recipe (None: the defaults) with overrides `--section.key value` (or `--section.key=value`) on top.

    Raises:
        ConfigError: unreadable recipe, unknown key, wrong type, or values that contradict each other.
    """
    try:
        tree = tomllib.loads(recipe.read_text()) if recipe else {}
    except OSError as error:
        raise ConfigError(f"recipe {recipe} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also: not UTF-8, thousands of digits, nested too deeply
        raise ConfigError(f"recipe {recipe} is not valid TOML: {error}") from error
    for section, key, value in parse_overrides(overrides):
        table = tree.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{recipe}: {section} must be a table, like [{section}]")
        table[key] = value
    try:
        return kind.model_validate({"model": {}, **tree})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, kind) for problem in error.errors())) from error


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, str, Any]]:
    """[(section, key, value)] of `--section.key value` arguments; values are read as TOML where they can be.

    Raises:
        ConfigError: an argument of another form.
    """
    overrides = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        section, dot, key = name.partition(".")
        if not (word.startswith("--") and dot and section and key):
            raise ConfigError(f"unexpected argument {word!r}; settings are given as --section.key value")
        if not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"{word} needs a value: {word} VALUE")
            value = words.pop(0)
        overrides.append((section, key, _value(value)))
    return overrides


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # also an integer of thousands of digits, nested too deeply
        return text


def _explain(problem: Any, kind: type[BaseModel]) -> str:
    place = [str(part) for part in problem["loc"]]
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        model = kind
        for part in place[:-1]:
            annotation = model.model_fields[part].annotation
            assert isinstance(annotation, type)
            model = annotation
        prefix = "".join(f"{part}." for part in place[:-1])
        return unknown_name("setting", key, [prefix + name for name in model.model_fields])
    if problem["type"] == "missing":
        return f"setting {key!r} is missing; give it in the recipe or as --{key} VALUE"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {message[0].lower()}{message[1:]}" if key else message
