"""The contract between the supervisor and whatever starts, watches and kills the processes of a run."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from driftproof.runtime.activity import Activity

STOP_SECONDS = 120.0
"""How long a clean stop may take before processes are killed."""


class Role(StrEnum):
    """The part that a process plays in a run."""

    LEARNER = "learner"
    WORKER = "worker"
    EVALUATOR = "evaluator"
    BOTH = "both"
    """Learner and rollout worker in turns: nothing overlaps, every run is repeatable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """A process's share of its machine."""

    threads: int


class Member(Protocol):
    """A process of a run, seen from the supervisor."""

    @property
    def name(self) -> str: ...

    @property
    def where(self) -> str:
        """The place to look for it, for people: its process id, its host."""

    @property
    def alive(self) -> bool: ...

    @property
    def paused(self) -> bool:
        """Whether it was stopped by a signal and waits for one that lets it go on."""

    def activity(self) -> Activity | None:
        """Its activity as it told it last, also while it hangs; None before it has told any."""

    def wait(self, seconds: float) -> None:
        """Return when it has ended, or after so many seconds."""

    def kill(self) -> None:
        """End it now, and return when it has ended."""

    def last_error(self) -> str | None:
        """How it ended, as a clause ("was killed by signal 9"); None while it lives, and where nothing was wrong."""

    @property
    def refused_input(self) -> bool:
        """Whether it ended because of its input (model, data, settings), so that a resume would end the same way."""

    def last_output(self) -> str:
        """The end of its log, for an error that says too little; "" where it says all."""

    def stacks(self) -> str:
        """The stacks of its threads, "" if it does not answer within seconds; one that is paused is made to go on."""


class Placement(Protocol):
    """Starts the processes of one run."""

    def start(self, role: Role, name: str, resources: Resources) -> Member:
        """Start the process `name` of the run in its role."""
