"""The display of a running training: live in a terminal, plain lines elsewhere.

Guarantees: draws at most four times a second and starts no thread; no text of a model disturbs a terminal or a line.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from driftproof.ledger.reader import LedgerReader
from driftproof.ledger.records import RUNNING
from driftproof.report.text import duration, printable, shorten
from driftproof.report.view import View

REFRESH_SECONDS = 0.25
LOG_SECONDS = 5.0
WIDE = 90
"""Columns from which on two figures stand side by side."""


class Display(Protocol):
    """A place where a run shows itself: updated as often as one likes, it looks at the ledger when it is due."""

    def update(self, ledger: LedgerReader) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


class RunConsole(Console):
    """A console whose reader may go away: that is an error to be met, where rich would end the program."""

    def on_broken_pipe(self) -> None:
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise BrokenPipeError("nobody reads what is printed")


def open_display(console: Console) -> Display:
    """A live display in a terminal that can show it, else lines."""
    can_draw = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return LiveDisplay(console) if can_draw else LogLines(console)


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
