"""A running training at one moment: figures by their labels, and what the run is doing in words.

Guarantees: only what is new in the ledger is read; a figure that is not there is "-".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from driftproof.learner.phases import TRAINS, WAITS_FOR_GROUPS
from driftproof.ledger.reader import LedgerReader
from driftproof.ledger.records import FINISHED, STOPPING, Counters, Plan, Status
from driftproof.metrics import names
from driftproof.report.overlap import Overlap, finite, overlap
from driftproof.report.summary import read_recipe
from driftproof.text import duration

RECENT = 20
"""Steps that the shown means are taken over, or as many as there are."""
UNDER_WAY = "tokens_under_way"
"""Counter of an engine that knows how many tokens the responses have that it is writing."""

FIRST = (WAITS_FOR_GROUPS, TRAINS)
"""Phases of a learner that makes its first step."""

Doing = Mapping[str, tuple[str, float]]
"""The doing of each process of a run, in the third person, and for how many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A run at one moment."""

    name: str
    plan: Plan
    status: Status
    workers: Mapping[str, Counters]
    events: Mapping[str, tuple[int, str]]
    """Count and last message of each kind."""
    accuracy_before: float | None
    """Sampled accuracy on held-out prompts before the first step."""
    rewards: tuple[float, ...]
    """Mean reward of every step done."""
    recent: tuple[Mapping[str, Any], ...]
    """Metrics of the last `RECENT` steps."""
    trained_seconds: float
    """Wall time of all steps done."""
    published_step: int
    rollouts_fixed: str
    """Why responses do not come from the newest weights; "" where the engine follows them."""
    doing: Doing = field(default_factory=dict)

    @classmethod
    def of(cls, ledger: LedgerReader, previous: Self | None = None, doing: Doing | None = None) -> Self:
        """The view of a ledger; with the previous one, only later steps are read."""
        accuracy = previous.accuracy_before if previous else None
        if accuracy is None:
            accuracy = finite(ledger.evaluations().get("heldout", {}).get(0, {}).get("sampled"))
        steps = ledger.steps(after=previous.step if previous else 0)
        rewards = tuple(finite(step.get(names.REWARD)) or 0.0 for step in steps)
        seconds = sum(finite(step.get(names.STEP_SECONDS)) or 0.0 for step in steps)
        return cls(
            name=ledger.path.absolute().parent.name,
            plan=ledger.plan,
            status=ledger.status(),
            workers=ledger.workers(),
            events=ledger.events(),
            accuracy_before=accuracy,
            rewards=(previous.rewards if previous else ()) + rewards,
            recent=((previous.recent if previous else ()) + tuple(steps))[-RECENT:],
            trained_seconds=(previous.trained_seconds if previous else 0.0) + seconds,
            published_step=ledger.published_step,
            rollouts_fixed=previous.rollouts_fixed if previous else _fixed(read_recipe(ledger)),
            doing=doing or {},
        )

    @property
    def step(self) -> int:
        """The last step whose metrics are here."""
        return int(self.recent[-1]["step"]) if self.recent else self.status.step

    @property
    def seconds_left(self) -> float | None:
        left = self.plan.steps - self.step
        return self.trained_seconds / self.step * left if self.rewards and left else None

    @property
    def age_max(self) -> int | None:
        return max((step[names.AGE_MAX] for step in self.recent if names.AGE_MAX in step), default=None)

    @property
    def overlap(self) -> Overlap:
        return overlap(self.recent, len(self.workers))

    @property
    def starting(self) -> bool:
        """Whether models are still loaded, or held-out prompts evaluated, before the first step."""
        phase, _ = self.doing.get("learner", ("", 0.0))
        return self.step == 0 and (phase not in FIRST if phase else self.status.dispatched == 0)

    @property
    def activity(self) -> str:
        """The run's doing in words: who waits for whom while it trains."""
        if self.status.state == STOPPING:
            return "stopping: the learner writes a checkpoint"
        if self.status.state == FINISHED:
            return "finished"
        if self.step >= self.plan.steps:
            return "all steps are done; held-out prompts are evaluated"
        if self.starting:
            return "starting" if self.doing else "starting: models are loaded, held-out prompts are evaluated"
        if self.status.dispatched >= self.plan.steps * self.plan.groups_per_step:
            return "rollouts are done; the learner trains what they left"
        return self.overlap.waiting(self.plan.max_staleness) or "learner waits for the first groups"

    @property
    def means(self) -> dict[str, str]:
        """Figures over the recent steps, by their labels."""
        both, age_max = self.overlap, "-" if self.age_max is None else str(self.age_max)
        return {
            "reward": _number(self.mean(names.REWARD)),
            "NLL of positives": _number(self.mean(names.POSITIVE_NLL)),
            "NLL of negatives": _number(self.mean(names.NEGATIVE_NLL)),
            "scale imbalance": _number(self.mean(names.SCALE_IMBALANCE), 2),
            "entropy": _number(self.mean(names.ENTROPY)),
            "age of the data": f"mean {_number(self.mean(names.AGE_MEAN), 1)}, max {age_max}",
            "rollouts": _side(both.rollout_tokens, both.rollout_busy, both.wall_seconds),
            "learner": _side(both.learner_tokens, both.learner_busy, both.wall_seconds),
        }

    @property
    def now(self) -> dict[str, str]:
        """Figures of this moment, by their labels."""
        return {
            "accuracy before": _number(self.accuracy_before),
            "groups": f"{self.status.ready:,} ready, {self.status.leased:,} leased",
            "rollout weights": self._weights,
            "under way": self._under_way,
        }

    @property
    def _weights(self) -> str:
        """The step of the weights that the slowest worker has, beside the newest."""
        if self.rollouts_fixed:
            return self.rollouts_fixed
        slowest = min((worker.snapshot for worker in self.workers.values() if worker.snapshot >= 0), default=None)
        newest = f"step {self.published_step}"
        return newest if slowest is None or slowest >= self.published_step else f"step {slowest}, newest {newest}"

    @property
    def _under_way(self) -> str:
        known = [worker.engine[UNDER_WAY] for worker in self.workers.values() if UNDER_WAY in worker.engine]
        return f"{sum(known):,.0f} tokens" if known else "-"

    def mean(self, name: str) -> float | None:
        """Mean of a metric over the recent steps that have it."""
        values = [value for step in self.recent if (value := finite(step.get(name))) is not None]
        return sum(values) / len(values) if values else None


def _fixed(recipe: Mapping[str, Any]) -> str:
    if recipe.get("rollouts", {}).get("recorded_share") == 1:
        return "none: responses are recorded"
    return "fixed: the servers keep theirs" if recipe.get("engine", {}).get("name") == "openai" else ""


def doing_lines(doing: Doing) -> list[str]:
    """A line for each process."""
    return [f"{name} {phase} ({duration(seconds)})" for name, (phase, seconds) in doing.items()]


def _side(tokens: float, busy: float | None, seconds: float) -> str:
    speed = f"{tokens / seconds:,.0f}" if seconds > 0 else "-"
    return f"{speed} tokens/s, busy {'-' if busy is None else f'{busy:.0%}'}"


def _number(value: float | None, decimals: int = 3) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
