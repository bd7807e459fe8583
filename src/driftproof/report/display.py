"""The display of a running training: live in a terminal, plain lines elsewhere.

Guarantees: draws at most four times a second and starts no thread; no text of a model disturbs a terminal or a line.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from driftproof.ledger.reader import LedgerReader
from driftproof.ledger.records import FINISHED, RUNNING, STOPPING, Plan, Status
from driftproof.metrics import names
from driftproof.report.overlap import Overlap, finite, overlap
from driftproof.report.text import duration, printable, shorten

RECENT = 20
"""Steps that the shown means are taken over."""
REFRESH_SECONDS = 0.25
LOG_SECONDS = 5.0
WIDE = 90
"""Columns from which on two figures stand side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A run at one moment; only what is new in the ledger is read."""

    name: str
    plan: Plan
    status: Status
    workers: int
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

    @classmethod
    def of(cls, ledger: LedgerReader, previous: Self | None = None) -> Self:
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
            workers=len(ledger.workers()),
            events=ledger.events(),
            accuracy_before=accuracy,
            rewards=(previous.rewards if previous else ()) + rewards,
            recent=((previous.recent if previous else ()) + tuple(steps))[-RECENT:],
            trained_seconds=(previous.trained_seconds if previous else 0.0) + seconds,
        )

    @property
    def step(self) -> int:
        """The last step whose metrics are here."""
        return int(self.recent[-1]["step"]) if self.recent else self.status.step

    @property
    def seconds_left(self) -> float | None:
        return self.trained_seconds / self.step * (self.plan.steps - self.step) if self.rewards else None

    @property
    def age_max(self) -> int | None:
        return max((step[names.AGE_MAX] for step in self.recent if names.AGE_MAX in step), default=None)

    @property
    def overlap(self) -> Overlap:
        return overlap(self.recent, self.workers)

    @property
    def activity(self) -> str:
        """The run's doing in words: who waits for whom while it trains."""
        if self.status.state == STOPPING:
            return "stopping: the learner writes a checkpoint"
        if self.status.state == FINISHED:
            return "finished"
        if self.step >= self.plan.steps:
            return "all steps are done; held-out prompts are evaluated"
        if self.status.dispatched == 0 and self.step == 0:
            return "starting: models are loaded, held-out prompts are evaluated"
        if self.status.dispatched >= self.plan.steps * self.plan.groups_per_step:
            return "rollouts are done; the learner trains what they left"
        return self.overlap.waiting(self.plan.max_staleness) or "learner waits for the first groups"

    @property
    def facts(self) -> dict[str, str]:
        """All figures by their labels; "-" for one that is not there."""
        both, age_max = self.overlap, "-" if self.age_max is None else str(self.age_max)
        return {
            "reward": _number(self.mean(names.REWARD)),
            "accuracy before": _number(self.accuracy_before),
            "NLL of positives": _number(self.mean(names.POSITIVE_NLL)),
            "NLL of negatives": _number(self.mean(names.NEGATIVE_NLL)),
            "scale imbalance": _number(self.mean(names.SCALE_IMBALANCE), 2),
            "entropy": _number(self.mean(names.ENTROPY)),
            "rollouts": _side(both.rollout_tokens, both.rollout_busy, both.wall_seconds),
            "learner": _side(both.learner_tokens, both.learner_busy, both.wall_seconds),
            "age of the data": f"mean {_number(self.mean(names.AGE_MEAN), 1)}, max {age_max}",
            "groups": f"{self.status.ready:,} ready, {self.status.leased:,} leased",
        }

    def mean(self, name: str) -> float | None:
        """Mean of a metric over the recent steps that have it."""
        values = [value for step in self.recent if (value := finite(step.get(name))) is not None]
        return sum(values) / len(values) if values else None


def _side(tokens: float, busy: float | None, seconds: float) -> str:
    speed = f"{tokens / seconds:,.0f}" if seconds > 0 else "-"
    return f"{speed} tokens/s, busy {'-' if busy is None else f'{busy:.0%}'}"


def _number(value: float | None, decimals: int = 3) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


class RunConsole(Console):
    """A console whose reader may go away: that is an error to be met, where rich would end the program."""

    def on_broken_pipe(self) -> None:
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise BrokenPipeError("nobody reads what is printed")


class LiveDisplay:
    """Progress and figures, drawn over again."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._view: View | None = None
        self._drawn = float("-inf")

    def update(self, ledger: LedgerReader) -> None:
        if time.monotonic() - self._drawn < REFRESH_SECONDS and ledger.state() == RUNNING:
            return
        self._view = View.of(ledger, self._view)
        self._live.start()
        self._live.update(render(self._view, self._live.console.width), refresh=True)
        self._drawn = time.monotonic()

    def message(self, text: str) -> None:
        self._live.console.print(Text("\n".join(map(printable, text.splitlines()))))

    def close(self) -> None:
        self._live.stop()


class LogLines:
    """A line every few seconds, where something has changed."""

    def __init__(self, console: Console, every_seconds: float = LOG_SECONDS) -> None:
        self._console = console
        self._every_seconds = every_seconds
        self._view: View | None = None
        self._written = float("-inf")

    def update(self, ledger: LedgerReader) -> None:
        if time.monotonic() - self._written < self._every_seconds and ledger.state() == RUNNING:
            return
        previous, self._view = self._view, View.of(ledger, self._view)
        self._written = time.monotonic()
        for kind, (count, message) in self._view.events.items():
            if previous is None or previous.events.get(kind, (0, ""))[0] < count:
                self.message(printable(f"{kind} ({count}): {message}"))
        if previous is None or (previous.step, previous.activity) != (self._view.step, self._view.activity):
            self.message(log_line(self._view))

    def message(self, text: str) -> None:
        encoding = self._console.encoding
        for line in text.splitlines():
            # A file that cannot take a letter must not end a run.
            shown = printable(line).encode(encoding, "backslashreplace").decode(encoding)
            self._console.out(shown, highlight=False)

    def close(self) -> None:
        pass


Display = LiveDisplay | LogLines
"""A place where a run shows itself: updated as often as one likes, it looks at the ledger when it is due."""


def open_display(console: Console) -> Display:
    """A live display in a terminal that can show it, else lines."""
    can_draw = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return LiveDisplay(console) if can_draw else LogLines(console)


def log_line(view: View) -> str:
    """One line without control characters."""
    left = "" if view.seconds_left is None else f", {duration(view.seconds_left)} left"
    facts = [f"{label} {text}" for label, text in view.facts.items()] if view.recent else []
    return printable(" | ".join([f"step {view.step}/{view.plan.steps}{left}", *facts, view.activity]))


def render(view: View, width: int) -> RenderableType:
    """The live display, in `width` columns."""
    pairs = 2 if width >= WIDE else 1
    events = [
        Text(shorten(printable(f"{count:,} x {kind}: {message}"), max(width, 20)), "yellow", no_wrap=True)
        for kind, (count, message) in view.events.items()
    ]
    return Group(_progress(view, width), Text(view.activity, "bold cyan"), _facts(view, pairs), *events)


def sparkline(values: Sequence[float], columns: int) -> str:
    """Means of at most `columns` equal parts as bars, from 0 (or the lowest part below it) to the highest part."""
    size = max(-(-len(values) // columns), 1)
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min([0.0, *means]), max([0.0, *means])
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((mean - low) * scale)] for mean in means)


def _progress(view: View, width: int) -> Table:
    columns = [Column(ratio=ratio, no_wrap=True) for ratio in (None, 1, None, None)]
    line = Table.grid(*columns, padding=(0, 1), expand=True)
    times = [duration(view.trained_seconds)] if width >= WIDE else []
    if view.seconds_left is not None:
        times.append(f"{duration(view.seconds_left)} left")
    line.add_row(
        Text(shorten(printable(view.name), 24), "bold"),
        ProgressBar(total=view.plan.steps, completed=view.step),
        f"{view.step}/{view.plan.steps} steps",
        Text(", ".join(times), "dim"),
    )
    return line


def _facts(view: View, pairs: int) -> Table:
    grid = Table.grid(padding=(0, 2))
    for _ in range(pairs):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(no_wrap=True, min_width=30)
    (label, mean), *others = view.facts.items()
    reward = Text(mean, "bold").append(f" {sparkline(view.rewards, 24)}", "cyan")
    facts: list[tuple[str, str | Text]] = [(label, reward), *others]
    for start in range(0, len(facts), pairs):
        grid.add_row(*[cell for fact in facts[start : start + pairs] for cell in fact])
    return grid
