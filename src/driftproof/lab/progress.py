"""Progress of a grid: a bar in a terminal, plain lines elsewhere."""

import time

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from driftproof.text import duration


class GridProgress:
    """A display that is told how many runs are done, of how many; it shows them until it is closed."""

    def __init__(self, console: Console, found: int) -> None:
        """`found`: runs that were on disk before; they say nothing about the time that is left."""
        self._console = console
        self._found = found
        self._done = self._total = found
        self._started = self._changed = time.monotonic()
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, get_renderable=self._bar, refresh_per_second=2, transient=True)
            self._live.start()

    def __call__(self, done: int, total: int) -> None:
        if done != self._done:
            self._changed = time.monotonic()
        fresh = (done, total) != (self._done, self._total)
        self._done, self._total = done, total
        if self._live is None and fresh:
            self._console.out(self.line, highlight=False)

    @property
    def line(self) -> str:
        """A line such as "runs 3/8, 2:10, 4:20 left"."""
        passed, left = time.monotonic() - self._started, self.seconds_left
        parts = [f"runs {self._done}/{self._total}", duration(passed)]
        return ", ".join(parts if left is None else [*parts, f"{duration(left)} left"])

    @property
    def seconds_left(self) -> float | None:
        """Estimate at the mean speed of the runs done here; None before the first."""
        ran = self._done - self._found
        if ran <= 0 or self._done == self._total:
            return None
        per_run = (self._changed - self._started) / ran
        return max(per_run * (self._total - self._done) - (time.monotonic() - self._changed), 0.0)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _bar(self) -> RenderableType:
        bar = Table.grid(Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
        bar.add_row(ProgressBar(total=max(self._total, 1), completed=self._done), Text(self.line))
        return bar
