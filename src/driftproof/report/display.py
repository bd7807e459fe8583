"""The display of a running training: live in a terminal, plain lines elsewhere.

Guarantees: something is seen before anything is loaded; draws at most four times a second, from a thread of its own
only until the run has begun; no text of a model disturbs a terminal or a line.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from driftproof.ledger.reader import LedgerReader
from driftproof.ledger.records import FINISHED, RUNNING
from driftproof.report.view import Doing, View, doing_lines
from driftproof.text import duration, printable, shorten

REFRESH_SECONDS = 0.25
LOG_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""Time after which a line is written though nothing has changed: the run is alive."""
WIDE = 90
"""Columns from which on two figures stand side by side."""
LONG_SECONDS = 3.0
"""Time after which a process's doing is worth a line of its own, once the run has begun."""
MOST_DOING = 4
"""Processes whose doing is shown."""


class RunConsole(Console):
    """A console whose reader may go away: that is an error to be met, where rich would end the program."""

    def on_broken_pipe(self) -> None:
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise BrokenPipeError("nobody reads what is printed")


class LiveDisplay:
    """Progress and figures, drawn over again."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._start: _Starting | None = None
        self._started = time.monotonic()
        self._view: View | None = None
        self._drawn = float("-inf")

    def starting(self, run: str | Path, phase: str) -> None:
        """Show what is done before the run begins, and for how long."""
        if self._start is None:
            self._start = _Starting(self._console, self._started)
        self._start.show(str(run), phase)

    def update(self, ledger: LedgerReader, doing: Doing | None = None) -> None:
        if time.monotonic() - self._drawn < REFRESH_SECONDS and ledger.state() == RUNNING:
            return
        self._end_start()
        self._view = View.of(ledger, self._view, doing)
        self._live.start()
        elapsed = time.monotonic() - self._started
        self._live.update(render(self._view, self._console.width, elapsed), refresh=True)
        self._drawn = time.monotonic()

    def message(self, text: str) -> None:
        self._console.print(Text("\n".join(map(printable, text.splitlines()))))

    def close(self) -> None:
        self._end_start()
        self._live.stop()

    def _end_start(self) -> None:
        if self._start is not None:
            self._start.close()
            self._start = None


class _Starting:
    """A line that shows, by a thread of its own, that something is done, until there is a ledger to look at."""

    def __init__(self, console: Console, since: float) -> None:
        self._since, self._run, self._phase = since, "", ""
        self._live = Live(self, console=console, refresh_per_second=1 / REFRESH_SECONDS, transient=True)

    def show(self, run: str, phase: str) -> None:
        self._run, self._phase = shorten(printable(run), 24), phase
        self._live.start(refresh=True)
        self._live.refresh()

    def close(self) -> None:
        self._live.stop()

    def __rich__(self) -> Text:
        elapsed = duration(time.monotonic() - self._since)
        return Text.assemble((self._run, "bold"), (f" {self._phase} ", "bold cyan"), (elapsed, "dim"))


class LogLines:
    """A line every few seconds, where something has changed."""

    def __init__(self, console: Console, every_seconds: float = LOG_SECONDS) -> None:
        self._console = console
        self._every_seconds = every_seconds
        self._view: View | None = None
        self._looked = self._written = float("-inf")

    def starting(self, run: str | Path, phase: str) -> None:
        self.message(f"{run} {phase}")

    def update(self, ledger: LedgerReader, doing: Doing | None = None) -> None:
        if time.monotonic() - self._looked < self._every_seconds and ledger.state() == RUNNING:
            return
        previous, self._view = self._view, View.of(ledger, self._view, doing)
        self._looked = time.monotonic()
        for kind, (count, message) in self._view.events.items():
            if previous is None or previous.events.get(kind, (0, ""))[0] < count:
                self.message(printable(f"{kind} ({count}): {message}"))
        silent = self._looked - self._written > SILENT_SECONDS
        if silent or previous is None or _of_note(previous) != _of_note(self._view):
            self.message(log_line(self._view))
            self._written = self._looked

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
    means = [f"{label} {text}" for label, text in view.means.items()]
    now = [f"{label} {text}" for label, text in view.now.items()]
    facts = [f"mean of {len(view.recent)}: {means[0]}", *means[1:], *now] if view.recent else []
    waits = doing_lines(view.doing) if _tells_doing(view) else []
    return printable(" | ".join([f"step {view.step}/{view.plan.steps}{left}", *facts, view.activity, *waits]))


def _of_note(view: View) -> tuple[object, ...]:
    """The parts of a view that are worth a line when they change."""
    doing = {name: phase for name, (phase, _) in view.doing.items()} if view.starting else {}
    return view.step, view.activity, doing


def _tells_doing(view: View) -> bool:
    """Whether figures do not say yet, or no longer, what is waited for."""
    return view.status.state != FINISHED and (not view.recent or view.step >= view.plan.steps)


def render(view: View, width: int, elapsed: float = 0.0) -> RenderableType:
    """The live display, in `width` columns; `elapsed` are the seconds since the command began."""
    pairs = 2 if width >= WIDE else 1
    least = 0.0 if _tells_doing(view) else LONG_SECONDS
    doing = doing_lines({name: (phase, since) for name, (phase, since) in view.doing.items() if since >= least})
    lines = [Text(shorten(f"  {line}", max(width, 20)), "dim", no_wrap=True) for line in doing[:MOST_DOING]]
    if len(doing) > MOST_DOING:
        lines.append(Text(f"  and {len(doing) - MOST_DOING} more", "dim"))
    events = [
        Text(shorten(printable(f"{count:,} x {kind}: {message}"), max(width, 20)), "yellow", no_wrap=True)
        for kind, (count, message) in view.events.items()
    ]
    return Group(
        _progress(view, width, elapsed), Text(view.activity, "bold cyan"), *lines, *_figures(view, pairs), *events
    )


def sparkline(values: Sequence[float], columns: int) -> str:
    """Means of at most `columns` equal parts as bars, from 0 (or the lowest part below it) to the highest part."""
    size = max(-(-len(values) // columns), 1)
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min([0.0, *means]), max([0.0, *means])
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((mean - low) * scale)] for mean in means)


def _progress(view: View, width: int, elapsed: float) -> Table:
    columns = [Column(ratio=ratio, no_wrap=True) for ratio in (None, 1, None, None)]
    line = Table.grid(*columns, padding=(0, 1), expand=True)
    times = [duration(elapsed)]
    if view.seconds_left is not None:
        times.append(f"{duration(view.seconds_left)} left")
    line.add_row(
        Text(shorten(printable(view.name), 24), "bold"),
        ProgressBar(total=view.plan.steps, completed=view.step),
        f"{view.step}/{view.plan.steps} steps",
        Text(", ".join(times), "dim"),
    )
    return line


def _figures(view: View, pairs: int) -> list[RenderableType]:
    """The means of the recent steps, once there are any, and the figures of now."""
    now = _grid([*view.now.items()], pairs)
    if not view.recent:
        return [now]
    (label, mean), *others = view.means.items()
    reward = Text(mean, "bold").append(f" {sparkline(view.rewards, 24)}", "cyan")
    count = len(view.recent)
    title = Text(f"mean of the last {count} steps" if count > 1 else "of the first step", "dim italic")
    return [title, _grid([(label, reward), *others], pairs), Text("now", "dim italic"), now]


def _grid(facts: Sequence[tuple[str, str | Text]], pairs: int) -> Table:
    grid = Table.grid(padding=(0, 2))
    for _ in range(pairs):
        grid.add_column(style="dim", no_wrap=True, min_width=16)
        grid.add_column(no_wrap=True, min_width=30)
    for start in range(0, len(facts), pairs):
        grid.add_row(*[cell for fact in facts[start : start + pairs] for cell in fact])
    return grid
