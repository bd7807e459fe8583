"""The rollout worker: lease, generate, verify, commit.

Guarantees: every leased group is committed, or its lease is given up by the worker's death; a worker that is busy loses
no lease, however long its engine loads weights or decodes; a failed verification costs the reward of one response and
is recorded; a failed generation is tried again, and a group that fails again and again is committed without responses.
An engine that fails one group after the other ends the worker.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from driftproof.engines.protocol import Completed, Engine
from driftproof.errors import EngineError
from driftproof.faults import ENGINE, fault_point
from driftproof.ledger.backoff import Backoff
from driftproof.ledger.leases import Leases
from driftproof.ledger.records import RUNNING, Counters
from driftproof.rollout.renewals import renewals
from driftproof.rollout.requests import make_request
from driftproof.rollout.settings import RolloutSettings
from driftproof.rollout.weights import WeightFollower
from driftproof.tasks.codec import Codec
from driftproof.tasks.protocol import Task
from driftproof.types import Channel, Group, Request, Sampling
from driftproof.verify import Verifier
from driftproof.verify.judge import judge, troubles

ATTEMPTS = 3
"""Attempts at generating a group before giving it up."""
REPORT_SECONDS = 5.0
"""Most seconds between two reports: a display shows what is under way."""
FAILED_GROUPS = 8
"""Groups in a row that an engine may fail to write before its worker ends."""


class RolloutWorker:
    """One worker over one engine: `work` is a moment of it, `run` its life; around both, `renewing` keeps leases."""

    def __init__(
        self,
        name: str,
        leases: Leases,
        engine: Engine,
        task: Task,
        codec: Codec,
        verifier: Verifier,
        snapshots: Path,
        settings: RolloutSettings,
        sampling: Sampling,
        phase: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`phase` is told, in a few words, whenever the worker turns to something else."""
        self.name = name
        self.leases = leases
        self.engine = engine
        self.task = task
        self.codec = codec
        self.verifier = verifier
        self.settings = settings
        self.sampling = sampling
        self.want_logprobs = Channel.BEHAVIOR_LOGPROBS in leases.plan.channels
        self.weights = WeightFollower(engine, snapshots, phase=self._enter, refused=self._refused)
        self._tell_phase = phase
        self._phase = ""
        self._under_way = 0
        self._held: frozenset[int] = frozenset()
        """Groups that are leased and not committed; replaced, never changed, as the renewals read it."""
        self._attempts: Counter[int] = Counter()
        self._failed_in_a_row = 0
        self._given_up: dict[int, Group] = {}
        self._verifying: list[Future[dict[int, Group]]] = []
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="verify")
        self._check_renewals: Callable[[], None] = lambda: None
        self._busy_since: float | None = None
        """When `work` was called that has not returned yet."""
        self._reporting = threading.Lock()
        """Held from counting to writing, so that no older counters replace newer ones."""
        self._totals = Counters()
        self._engine_counters: dict[str, float] = {}
        self._renewed = 0

    def work(self) -> bool:
        """Take leases, follow the weights, make an engine step, commit what is verified; whether there was any work."""
        self._busy_since = started = time.monotonic()
        self._check_renewals()
        requests = self._lease()
        self.weights.follow()
        for request in requests:
            self.engine.submit(request)
        self._count(requests_with_logprobs=sum(request.want_logprobs for request in requests))
        self._under_way += len(requests)
        fault_point(ENGINE, EngineError)
        if self._under_way:
            self._enter("waits for its engine")
            self._sort(self.engine.collect())
        # Read in this thread: an engine's counters may change while it works.
        self._engine_counters = dict(self.engine.counters)
        committed = self._commit()
        active = bool(requests or committed or self._under_way)
        if not active:
            self._enter("waits for its verifier" if self._verifying else "waits for a prompt that it may lease")
        seconds = time.monotonic() - started
        self._count(**{"busy_seconds" if active else "waiting_seconds": seconds})
        self._busy_since = None
        return active

    def run(self) -> None:
        """Work until the run is no longer running; what is under way then is written after a resume."""
        backoff = Backoff()
        while self.leases.state() == RUNNING:
            if self.work():
                backoff.reset()
            else:
                self._count(waiting_seconds=backoff.pause())

    @contextmanager
    def renewing(
        self, connect: Callable[[], AbstractContextManager[Leases]], *, longest_step: float = 300.0
    ) -> Iterator[None]:
        """Renew the leases, and report, at least four times while a lease lasts, in a thread beside the work.

        A call of `work` that takes longer than `longest_step` seconds is stuck: its leases are left to others.
        """

        def renew(leases: Leases) -> None:
            since = self._busy_since
            if since is None or time.monotonic() - since < longest_step:
                self._renewed += 1
                with self._reporting:
                    leases.renew(self.name, self._held, self.settings.lease_seconds, self._counters())

        with renewals(
            connect, renew, every=min(self.settings.lease_seconds / 4, REPORT_SECONDS)
        ) as self._check_renewals:
            yield
        self._check_renewals = lambda: None

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)
        self.verifier.close()
        self.engine.close()

    def _lease(self) -> list[Request]:
        room = self.engine.room // self.settings.group_size
        if room == 0 and self._under_way == 0:
            room = 1
        if room <= 0:
            return []
        self._enter("asks the ledger for prompts")
        leases = self.leases.lease(self.name, room, self.settings.lease_seconds)
        self._held |= {lease.dispatch for lease in leases}
        return [
            make_request(
                lease.dispatch,
                prompt := self.task.train[lease.prompt_index],
                self.codec.encode(prompt),
                samples=self.settings.group_size,
                sampling=self.sampling,
                want_logprobs=self.want_logprobs,
            )
            for lease in leases
        ]

    def _sort(self, completed: list[Completed]) -> None:
        """Hand what was answered to the verifier, and try again what was not."""
        for item in completed:
            if item.error:
                self._try_again(item)
        if answered := [item for item in completed if not item.error]:
            self._under_way -= len(answered)
            self._failed_in_a_row = 0
            self._verifying.append(self._executor.submit(self._score, answered))

    def _try_again(self, item: Completed) -> None:
        """Submit a failed request once more, or give its group up; too many in a row are the engine's failure."""
        key = item.request.key
        self._attempts[key] += 1
        self.leases.record_event("generation failed", f"group {key}: {item.error}")
        if self._attempts[key] < ATTEMPTS:
            self.engine.submit(item.request)
            return
        failure = f"group {key} failed {ATTEMPTS} times; the last time: {item.error}"
        self._failed_in_a_row += 1
        if self._failed_in_a_row == FAILED_GROUPS:
            raise EngineError(f"{FAILED_GROUPS} groups in a row could not be written; {failure}")
        self.leases.record_event("group without responses", failure)
        self._under_way -= 1
        (self._given_up[key],) = judge(self.codec, self.verifier, [item])

    def _score(self, completed: list[Completed]) -> dict[int, Group]:
        """Runs in the verifying thread; touches neither ledger nor engine."""
        groups = judge(self.codec, self.verifier, completed)
        return {item.request.key: group for item, group in zip(completed, groups, strict=True)}

    def _commit(self) -> int:
        done = [future for future in self._verifying if future.done()]
        if not (done or self._given_up):
            return 0
        self._enter("commits groups to the ledger")
        # Asked once: another may be done by now.
        self._verifying = [future for future in self._verifying if future not in done]
        groups, failed = {key: group for future in done for key, group in future.result().items()}, self._given_up
        self._given_up = {}
        for group in groups.values():
            for kind, problem in troubles(group):
                self.leases.record_event(kind, problem)
        self._count(tokens=sum(len(group.response_tokens) for group in groups.values()), groups=len(groups))
        with self._reporting:
            self.leases.commit(self.name, groups | failed, self._counters())
        self._held -= groups.keys() | failed.keys()
        return len(groups) + len(failed)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._tell_phase(phase)

    def _count(self, **more: float) -> None:
        totals = {name: getattr(self._totals, name) + value for name, value in more.items()}
        self._totals = replace(self._totals, **totals)

    def _counters(self) -> Counters:
        engine, step = self._engine_counters, self.weights.loaded_step
        return replace(self._totals, phase=self._phase, snapshot=step, renewals=self._renewed, engine=engine)

    def _refused(self, problem: str) -> None:
        self.leases.record_event("snapshot not loaded", f"{self.name}: {problem}")
