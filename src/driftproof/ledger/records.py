"""The nouns of the ledger: what a run set out to do, what was leased, written and counted."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from driftproof.types import Channel, Group

RUNNING, STOPPING, FINISHED = STATES = ("running", "stopping", "finished")
LIMIT = 10**8
"""Numbers of a plan are below it, but for its seed: a permutation of all prompts fits into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run's aims and bounds; written when the ledger is made."""

    seed: int
    prompts: int
    """Prompts in the task's training split that are answered live."""
    groups_per_step: int
    max_staleness: int
    """Steps the rollout side may be ahead of the learner; 0 is synchronous. This bounds how many groups are dispatched:
    a slow group is overtaken, not thrown away, and may be older than this when it is trained."""
    steps: int
    """Optimizer steps of the whole run; no group is dispatched beyond them."""
    publish_every: int = 0
    """Steps between snapshots: admission waits for one that is overdue. 0: it never waits for a snapshot."""
    channels: frozenset[Channel] = frozenset()
    """Exactly the channels that every group must carry."""
    model: str = ""
    """Fingerprint of the model's configuration and tokenizer."""
    recorded_prompts: int = 0
    """Prompts of recorded groups beside those of the task; their indices follow those of the task."""
    recorded_share: float = 0.0
    """Share of the dispatches that get a recorded prompt (see `PromptOrder`); 0 without recorded prompts."""

    def newest_weights(self, step: int, published_step: int) -> int:
        """The step whose weights are the newest a worker can have, while the learner is at `step`."""
        return min(step, published_step) if self.publish_every else step

    def admitted(self, step: int, published_step: int) -> int:
        """How many groups may be dispatched in all; a learner counts as waiting where its next snapshot is due."""
        held_back = min(step, published_step + self.publish_every - 1) if self.publish_every else step
        return min(held_back + 1 + self.max_staleness, self.steps) * self.groups_per_step

    def problem(self) -> str:
        """Why the plan cannot be carried out; empty where it can."""
        prompts = self.recorded_prompts if self.recorded_share == 1 else self.prompts
        if min(prompts, self.groups_per_step, self.steps) < 1 or min(self.max_staleness, self.publish_every) < 0:
            return f"a run needs prompts, groups per step and steps above 0 and a staleness from 0; got {self}"
        if not 0 <= self.recorded_share <= 1 or (self.recorded_share > 0) != (self.recorded_prompts > 0):
            return f"recorded prompts and a share of them, above 0 and at most 1, belong together; got {self}"
        return ""

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"channels": sorted(self.channels)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan of a text; ValueError, TypeError or KeyError where it is none."""
        values: dict[str, Any] = json.loads(text)
        plan = cls(**values | {"channels": frozenset(map(Channel, values["channels"]))})
        numbers = [plan.prompts, plan.groups_per_step, plan.max_staleness, plan.steps, plan.publish_every]
        possible = all(type(number) is int and number < LIMIT for number in (*numbers, plan.recorded_prompts))
        possible &= type(plan.recorded_share) in (int, float) and type(plan.seed) is int and isinstance(plan.model, str)
        if not possible or plan.seed < 0 or plan.recorded_prompts < 0:
            raise ValueError(f"a value is impossible in {str(plan)[:1000]}")
        if problem := plan.problem():
            raise ValueError(problem)
        return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write one group, until the deadline."""

    dispatch: int
    prompt_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """The totals of a worker, as it reports them with its renewals and commits."""

    phase: str = ""
    """Its present work, in words."""
    busy_seconds: float = 0.0
    waiting_seconds: float = 0.0
    tokens: int = 0
    """Response tokens."""
    groups: int = 0
    requests_with_logprobs: int = 0
    snapshot: int = -1
    """Step of the weights it holds; -1 where it holds none of the run's."""
    renewals: int = 0
    """Reports beside the work, so that a worker that is busy for long is heard of."""
    engine: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__} | {"engine": dict(self.engine)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The counters of a text, else a ValueError; what another driftproof wrote beside them is left out."""
        values = json.loads(text)
        if not isinstance(values, dict) or not isinstance(values.get("engine", {}), dict):
            raise ValueError("counters are no object")
        # Until format 3 the engine's stood among the worker's.
        engine = {name.removeprefix("engine/"): value for name, value in values.items() if name.startswith("engine/")}
        known = {"engine": engine, **{name: values[name] for name in cls.__slots__ if name in values}}
        if wrong := [name for name, value in (known | known["engine"]).items() if not _is_counter(name, value)]:
            raise ValueError(f"its {wrong[0][:60]} is no number")
        return cls(**known)


def _is_counter(name: str, value: object) -> bool:
    return isinstance(value, {"phase": str, "engine": dict}.get(name, int | float))


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The run at one moment."""

    state: str
    """One of `STATES`."""
    step: int
    dispatched: int
    leased: int
    ready: int
    trained: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All that is known of a dispatch but its content: one browses by it."""

    dispatch: int
    prompt_index: int
    state: Literal["leased", "ready", "trained"]
    worker: str
    """The one that holds the lease, or that committed the group."""
    dispatched_step: int
    weights_step: int | None
    """Step of the weights that were newest at dispatch; None where it was not recorded (before format 3)."""
    trained_step: int | None
    responses: int | None
    """G; None, like the figures below (see `schema.TABLES`), until the group is committed."""
    tokens: int | None
    mean_reward: float | None
    """Mean over the responses that have a reward; None where none has."""
    reward_spread: float | None
    truncated: int | None
    failed: int | None
    unrewarded: int | None

    @property
    def age(self) -> int | None:
        """Learner updates between dispatch and training, None before; below 0 if a resume undid its dispatch's step."""
        return None if self.trained_step is None else self.trained_step - 1 - self.dispatched_step

    @property
    def weights_age(self) -> int | None:
        """Learner updates between the weights that were newest at dispatch and training."""
        if self.trained_step is None or self.weights_step is None:
            return None
        return self.trained_step - 1 - self.weights_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Summary):
    """A committed group with what the ledger knows of it."""

    group: Group
