"""One tree of settings: a TOML recipe, then dotted overrides, checked before anything starts.

Each room declares its own settings; here they become the sections of a recipe.

Guarantees: a key that does not exist is an error that names the nearest valid one; a text that is given as a number or
the like stays a text, and nothing else is taken for a number; a resolved configuration written to TOML and read again
is the same configuration.
"""

import difflib
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_origin, get_type_hints

import tomli_w
from annotated_types import Ge, Gt, Lt
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from driftproof.engines.settings import EngineSettings, SamplingSettings
from driftproof.errors import ConfigError, command_line, unknown_name
from driftproof.evaluation.settings import EvaluationSettings
from driftproof.learner.settings import AdvantagesSettings, LearnerSettings
from driftproof.metrics.settings import TrackingSettings
from driftproof.rollout.settings import RolloutSettings
from driftproof.run import RunDirectory
from driftproof.slips import meant_settings
from driftproof.values import expand_home, given, problems, shown, split_overrides
from driftproof.verify.settings import VerifySettings
from driftproof.weights.settings import ModelSettings

REMOVED = {
    "engine.start_seconds": "a launched server has runtime.start_seconds to answer",
    "runtime.silent_seconds": "a worker is replaced after twice rollouts.lease_seconds without a report",
    "learner.entropy": "the entropy is always measured",
    "learner.row_tokens": "it is a 32nd of learner.token_budget",
}
"""Settings of earlier versions, and what serves instead."""
LARGEST_RECIPE = 2**20
"""Bytes of a recipe."""
LONGEST_NAME = 200
"""Bytes of a run's name, to which a number may be added."""


def _directory_name(name: str) -> str:
    """The name of a run, if a directory under `runs/` can bear it."""
    parts = name.split("/")
    if name.startswith(("/", "~")) or {"", ".", ".."} & {part.strip() for part in parts}:
        raise ValueError("it names the directory runs/NAME; give run.directory for a run elsewhere")
    if max(len(part.encode()) for part in parts) > LONGEST_NAME:
        raise ValueError(f"it is longer than the {LONGEST_NAME} bytes that the name of a run's directory may have")
    return name


class NamedSection(BaseModel):
    """A section with a `name` and the fields of whatever bears that name."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class TaskSection(NamedSection):
    """A task's name, and the fields of that task (driftproof.tasks)."""

    name: str = "arithmetic"
    too_long: Literal["refuse", "drop"] = "refuse"
    """Prompts and recorded responses that are too long: `refuse` names the row, `drop` leaves out and counts them."""
    max_characters: Annotated[int, Ge(1)] = 1_000_000
    """Most characters of a prompt or a recorded response; a longer one is too long, and is not tokenized."""


class ObjectiveSection(NamedSection):
    """An objective's name, and the fields of that objective (driftproof.objectives)."""

    name: str = "asympo"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """A run's name, seed and length."""

    name: Annotated[str, AfterValidator(_directory_name)] = "run"
    """Name of the run, which goes to `runs/NAME`, or `runs/NAME-2` and so on if that exists."""
    directory: Path | None = None
    """Run directory itself; must be new or empty."""
    recipe_directory: Path | None = None
    """Directory of the recipe, set when it is read: verifiers, tasks and objectives of your own are found there."""
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    """Seed of prompt order, sampling and initialization."""
    steps: Annotated[int, Ge(1)] = 100
    """Steps of the whole run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """Processes of a run, and how long they may take."""

    mode: Literal["async", "sync"] = "async"
    """`async` overlaps rollouts and learning; `sync` takes turns in one process, and repeats bit for bit."""
    stall_seconds: Annotated[float, Gt(0)] = 600.0
    """Longest time without a new group or a finished step; the run is then stopped, and says who waits for whom."""
    start_seconds: Annotated[float, Gt(0)] = 3600.0
    """Longest time until the first step is done, and after the last: models load, held-out prompts are evaluated."""
    max_restarts: Annotated[int, Ge(0)] = 3
    """Restarts of each rollout worker that died."""


class Config(BaseModel):
    """A resolved recipe."""

    # Without "constants" an infinite field of an objective would be written as no value at all.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
    run: RunSettings = RunSettings()
    model: ModelSettings
    task: TaskSection = TaskSection()
    objective: ObjectiveSection = ObjectiveSection()
    advantages: AdvantagesSettings = AdvantagesSettings()
    sampling: SamplingSettings = SamplingSettings()
    engine: EngineSettings = EngineSettings()
    rollouts: RolloutSettings = RolloutSettings()
    verify: VerifySettings = VerifySettings()
    learner: LearnerSettings = LearnerSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse contradictions; settle what follows: in turns there is no staleness, and without it all publish."""
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
        if self.runtime.mode == "sync":
            object.__setattr__(self, "rollouts", replace(self.rollouts, max_staleness=0))
        if self.rollouts.max_staleness == 0:
            object.__setattr__(self, "learner", replace(self.learner, publish_every=1))
        return self

    def _check_recorded(self) -> None:
        path, share = self.rollouts.path, self.rollouts.recorded_share
        got = f"got rollouts.path {path} and rollouts.recorded_share {share}"
        if (path is None) != (share is None):
            raise ValueError(
                "rollouts.path and rollouts.recorded_share belong together: a recorded trace and its share of the "
                f"groups, like 0.25, or 1 for the trace alone; {got}"
            )
        if self.task.name == "recorded" and share != 1:
            raise ValueError(
                "task.name 'recorded' holds out a part of a recorded trace and trains on the rest, so nothing is "
                f"written live: give rollouts.path, the trace's file, and rollouts.recorded_share 1; {got}"
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

    def to_toml(self) -> str:
        """The whole resolved tree."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The tree that `to_toml` wrote, whether this version or an earlier one."""
        return cls._checked(_without_removed(tomllib.loads(text)))

    @classmethod
    def written_in(cls, directory: Path, overrides: Sequence[str] = ()) -> Self:
        """The configuration of a run or grid in its directory, with `overrides` on top; see `from_toml` and `load`."""
        recipe = RunDirectory(path=directory).config
        if not recipe.is_file():
            what = "run" if cls is Config else "grid"
            raise ConfigError(f"{directory} is not a {what}: it has no {recipe.name}")
        return cls._checked(_without_removed(_read(recipe)), overrides)

    @classmethod
    def load(cls, recipe: Path | None, overrides: Sequence[str] = ()) -> Self:
        """A recipe (None: the defaults) with overrides `--section.key value` (or `--section.key=value`) on top."""
        tree = _read(recipe) if recipe else {}
        if recipe and isinstance(run := tree.setdefault("run", {}), dict):
            run.setdefault("recipe_directory", str(recipe.parent.absolute()))
        return cls._checked(tree, overrides)

    @classmethod
    def _checked(cls, tree: dict[str, Any], overrides: Sequence[str] = ()) -> Self:
        given_texts = split_overrides(overrides)
        tasks = [text for section, key, text in given_texts if (section, key) == ("task", "name")]
        for section, key, text in given_texts:
            table = tree.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{section} must be a table, like [{section}]")
            hint = _kinds(cls).get(f"{section}.{key}")
            if hint is None and section == "task":
                hint = _task_field([*tasks, table.get("name")][0], key)
            name, dot, inner = key.partition(".")
            if dot and get_origin(_kinds(cls).get(f"{section}.{name}")) is dict:
                # A key of a setting that is a table of its own.
                known = table.get(name)
                table[name] = known if isinstance(known, dict) else {}
                table, key = table[name], inner
            table[key] = given(text, hint)
        kinds = {**_kinds(cls), **_task_fields(tree.get("task"))}
        expand_home(tree, kinds)
        wrong = dict(problems(tree, kinds))
        try:
            config = cls.model_validate({"model": {}, **tree})
        except ValidationError as error:
            others = [line for line in _explanations(error, cls) if not line.startswith(tuple(wrong))]
            raise ConfigError("\n".join([*wrong.values(), *others])) from error
        if wrong:
            raise ConfigError("\n".join(wrong.values()))
        beside = config.run.recipe_directory
        # Last on the path, so that nothing is shadowed; processes that are started have the path of this one.
        if beside is not None and str(beside) not in sys.path:
            sys.path.append(str(beside))
        return config


load_config = Config.load


def settings_of(kind: type[Config]) -> list[str]:
    """All settings, each `section.key`, and the best known of those that a task or an objective brings with it."""
    return [*_kinds(kind), "task.path", "task.verifier", "objective.kl"]


def _read(recipe: Path) -> dict[str, Any]:
    try:
        with recipe.open("rb") as file:
            content = file.read(LARGEST_RECIPE)
            if file.read(1):
                raise ValueError(f"it is larger than {LARGEST_RECIPE:,} bytes")
        # TOML is UTF-8, whatever this machine writes.
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {recipe} is not UTF-8 (its byte {error.start}); save it as UTF-8") from error
    except IsADirectoryError as error:
        is_run = RunDirectory(path=recipe).config.is_file()
        how = (
            f"; it is a run, go on with it: {command_line('driftproof', 'train', '--resume', recipe)}" if is_run else ""
        )
        raise ConfigError(f"recipe {recipe} cannot be read: it is a directory{how}") from error
    except OSError as error:
        raise ConfigError(f"recipe {recipe} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also: not UTF-8, thousands of digits, nested too deeply
        raise ConfigError(f"recipe {recipe} is not valid TOML: {error}") from error


@cache
def _kinds(kind: type[Config]) -> Mapping[str, Any]:
    """The type of every setting, with its annotations."""
    found: dict[str, Any] = {}
    for section, field in kind.model_fields.items():
        settings: Any = field.annotation
        hints = get_type_hints(settings, include_extras=True) if is_dataclass(settings) else {"name": str}
        found |= {f"{section}.{key}": hint for key, hint in hints.items()}
    return found


def _task_fields(table: object) -> dict[str, Any]:
    """The types of the fields that a recipe's task is given, where they might be taken for others."""
    fields = table if isinstance(table, dict) else {}
    return {f"task.{key}": hint for key in fields if (hint := _task_field(fields.get("name"), key)) is not None}


def _task_field(task: object, field: str) -> Any:
    """The type of a field of one of our tasks; None for any other."""
    from driftproof.tasks import TASKS

    found = TASKS.get(str(task))
    return get_type_hints(getattr(found, "func", found)).get(field) if found else None


def _without_removed(tree: dict[str, Any]) -> dict[str, Any]:
    """A tree without the settings that are no more."""
    for removed in REMOVED:
        section, _, key = removed.partition(".")
        if isinstance(table := tree.get(section), dict):
            table.pop(key, None)
    return tree


def _explanations(error: ValidationError, kind: type[Config]) -> Iterator[str]:
    """A line for each mistake; what is wrong by each of a setting's alternatives is one mistake."""
    for place, mistakes in groupby(error.errors(), key=lambda problem: _place(problem["loc"])):
        first, *others = mistakes
        line = _explain(first, ".".join(place), kind)
        yield " or ".join([line, *(_message(problem).removeprefix("input should be ") for problem in others)])


def _place(loc: Sequence[int | str]) -> list[str]:
    """Section, key, and places in its value; a text behind the key says which alternative was tried."""
    return [str(part) for place, part in enumerate(loc) if place != 2 or isinstance(part, int)]


def _explain(problem: Any, key: str, kind: type[Config]) -> str:
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        table = problem["input"] if isinstance(problem["input"], dict) else {}
        return unknown_setting(key, kind, [f"{key}.{name}" for name in table])
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], int):
        return f"{key.rpartition('.')[0]} = {shown(problem['input'])}: too few values"
    if problem["type"] == "missing":
        return f"setting {key!r} is missing; give it in the recipe or as --{key} VALUE"
    if problem["type"] in ("dataclass_type", "model_type") and key in kind.model_fields:
        return (
            f"{key} = {shown(problem['input'])}: input should be a section, [{key}], with the keys {_keys(key, kind)}"
        )
    return f"{key} = {shown(problem['input'])}: {_message(problem)}" if key else _message(problem)


def unknown_setting(name: str, kind: type[Config], within: Iterable[str] = ()) -> str:
    """The message for a setting, or a section with settings `within`, that does not exist, with what was meant."""
    if name in REMOVED:
        return f"setting {name!r} is no more: {REMOVED[name]}; leave it out"
    section, dot, _ = name.partition(".")
    valid = [setting for setting in settings_of(kind) if setting.startswith(f"{section}.")] or [*kind.model_fields]
    meant = dict.fromkeys(setting for each in (within or [name]) for setting in meant_settings(each, settings_of(kind)))
    if not meant or (not dot and difflib.get_close_matches(section, valid, n=1, cutoff=0.8)):
        return unknown_name("setting", name, valid)
    suggestion = " or ".join(map(repr, meant))
    return f"unknown setting {name!r}; did you mean {suggestion}? valid: {', '.join(sorted(valid))}"


def _keys(section: str, kind: type[Config]) -> str:
    prefix = f"{section}."
    return ", ".join(name.removeprefix(prefix) for name in settings_of(kind) if name.startswith(prefix))


def _message(problem: Any) -> str:
    text: str = problem["msg"].removeprefix("Value error, ")
    quotes = "; in a recipe, write it in quotes" if problem["type"] == "string_type" else ""
    return text[0].lower() + text[1:] + quotes
