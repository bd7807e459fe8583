"""Noticing that a run stands still, or a worker is silent, and telling who waits for whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from driftproof.learner.phases import WAITS_FOR_GROUPS
from driftproof.ledger.records import Counters, Status
from driftproof.runtime.activity import Activity


class Watchdog:
    """How long a run has got no further: no step was finished, no group committed, nothing evaluated."""

    def __init__(self, step: int, steps: int, *, stall_seconds: float, start_seconds: float) -> None:
        """`step`: where the run goes on; `steps`: of the whole run."""
        self._first, self._last = step, steps
        self._stall_seconds, self._start_seconds = stall_seconds, start_seconds
        self._progress: tuple[int, ...] = ()
        self._since = 0.0

    def exceeded(self, status: Status, evaluations: int, now: float) -> float | None:
        """The limit that was exceeded, in seconds, or None; to be asked again and again."""
        progress = (status.step, status.ready + status.trained, evaluations)
        if progress != self._progress:
            self._progress, self._since = progress, now
        # Before the first step and after the last models are loaded and held-out prompts evaluated.
        limit = self._start_seconds if status.step in (self._first, self._last) else self._stall_seconds
        return limit if now - self._since > limit else None

    def reset(self, now: float) -> None:
        """Begin to count anew: somebody was started again, and needs the time to get going."""
        self._since = now


class Heartbeats:
    """When each rollout worker last reported, seen by the counters that it leaves in the ledger."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Counters, float, bool]] = {}

    def started(self, worker: str, counters: Counters, now: float) -> None:
        """A worker is started (again); the counters are what was there before."""
        self._last[worker] = (counters, now, False)

    def silence(self, worker: str, counters: Counters, now: float) -> float:
        """Seconds since its last report, or since it was started."""
        if counters != self._last[worker][0]:
            self._last[worker] = counters, now, True
        return now - self._last[worker][1]

    def is_up(self, worker: str) -> bool:
        """Whether it has reported since it was started; before that it loads its model."""
        return self._last[worker][2]

    def reset(self, now: float) -> None:
        """All begin anew: somebody has kept the others from reporting."""
        self._last = {worker: (counters, now, up) for worker, (counters, _, up) in self._last.items()}


@dataclass(frozen=True, slots=True)
class Examined:
    """A process of a run that stands still."""

    name: str
    where: str
    paused: bool
    """It was stopped by a signal."""
    activity: Activity | None
    silence: float | None
    """Seconds since its last report; None where it makes none."""
    stacks: str
    """The stacks of its threads; "" where it did not answer."""

    @property
    def waits_for_groups(self) -> bool:
        return not self.paused and self.activity is not None and self.activity.phase == WAITS_FOR_GROUPS

    def described(self, now: float, status: Status, groups_per_step: int) -> str:
        """A line: who it is, what it does, and what it lacks."""
        line = f"{self.name} ({self.where}) {doing(self.activity, self.paused, now)}"
        if self.waits_for_groups:
            line += f": {status.ready} of {groups_per_step} are ready, {status.leased} are leased"
        if self.silence is not None and self.silence >= 1:
            line += f"; last heard of {self.silence:.0f} s ago"
        return line


def doing(activity: Activity | None, paused: bool, now: float) -> str:
    """A process's activity, in words that follow its name."""
    what = activity.described(now) if activity else "has not said what it does"
    return f"was stopped by a signal (SIGSTOP, SIGTSTP); it {what}" if paused else what


def who_waits(processes: Sequence[Examined], now: float, status: Status, groups_per_step: int) -> str:
    """A line for each process."""
    lines = [process.described(now, status, groups_per_step) for process in processes]
    if all(process.silence is None for process in processes):
        lines.append(f"no rollout worker of the run's own: {status.leased} groups are leased to others, or to nobody")
    return "\n".join(lines)


def write_stacks(path: Path, summary: str, processes: Sequence[Examined]) -> None:
    """All that is known, for whoever looks for the cause."""
    parts = [f"{process.name} ({process.where})\n{process.stacks or 'no answer'}" for process in processes]
    path.write_text("\n\n".join([summary, *parts]) + "\n")
