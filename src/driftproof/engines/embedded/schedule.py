"""The queue: requests wait first in, first out, for slots for their samples, and each comes out exactly once."""

from collections import deque
from dataclasses import dataclass, field

from driftproof.engines.protocol import Completed
from driftproof.types import Request, Response

_ADMISSION_SHARE = 8
"""Waiting samples are admitted when 1/8 of the slots is free: a prefill per freed slot costs more than it gains."""


@dataclass(slots=True)
class Job:
    """A request under way."""

    request: Request
    limit: int
    """Response tokens at most: max_tokens or what the context leaves."""
    admitted: int = 0
    """Samples that have, or had, a slot."""
    responses: dict[int, Response] = field(default_factory=dict)
    """Finished responses by sample index."""
    error: str = ""

    @property
    def waiting(self) -> int:
        """Samples without a slot so far."""
        return self.request.samples - self.admitted


Admission = tuple[Job, range]
"""Samples of one request that get slots together, by their indices in the group, which a range from 0 begins."""


class Schedule:
    """The queue in front of `slots` slots: `keys` of all requests under way, and how many samples are `waiting`."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.keys: set[int] = set()
        self.waiting = 0
        self._queue: deque[Job] = deque()
        self._completed: list[Completed] = []

    def add(self, request: Request, limit: int) -> None:
        """Queue a request whose responses have at most `limit` tokens."""
        self.keys.add(request.key)
        self._queue.append(Job(request=request, limit=limit))
        self.waiting += request.samples

    def admit(self, active: int) -> list[Admission]:
        """Take waiting samples into the slots that are free while `active` are in use; [] where that does not pay yet.

        At most the first admission continues a group, and at most the last leaves samples of its group waiting.
        """
        free = self.slots - active
        pays = active == 0 or free * _ADMISSION_SHARE >= self.slots or free >= self.waiting
        admissions: list[Admission] = []
        while self._queue and free and pays:
            job = self._queue[0]
            samples = range(job.admitted, job.admitted + min(free, job.waiting))
            admissions.append((job, samples))
            job.admitted += len(samples)
            free -= len(samples)
            self.waiting -= len(samples)
            if not job.waiting:
                self._queue.popleft()
        return admissions

    def finish(self, job: Job) -> None:
        """Complete the request of a job, where its last response has come."""
        request = job.request
        if len(job.responses) == request.samples:
            self.keys.remove(request.key)
            responses = () if job.error else tuple(job.responses[i] for i in range(request.samples))
            self._completed.append(Completed(request=request, responses=responses, error=job.error))

    def take_completed(self) -> list[Completed]:
        """Requests completed since the last call."""
        completed, self._completed = self._completed, []
        return completed
