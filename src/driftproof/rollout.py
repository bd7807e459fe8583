"""The rollout worker: lease, generate, verify, commit.

Guarantees: every leased group is committed, or its lease is given up by the worker's death; a failed verification
costs the reward of one response and is recorded; a failed generation is tried again, and only repeated failure of the
same group ends the worker.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from driftproof.codec import Codec
from driftproof.engines.protocol import Completed, Engine, EngineError
from driftproof.ledger import RUNNING, Ledger
from driftproof.tasks.protocol import Task
from driftproof.types import Group, Prompt, Request, Sampling, Tokens, Verdict
from driftproof.verify import Verifier
from driftproof.weights import latest

ATTEMPTS = 3
"""Times a group is generated before its failure ends the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """What a worker asks its engine for."""

    group_size: int
    sampling: Sampling
    want_logprobs: bool
    lease_seconds: float = 120.0
    """A worker that is silent for so long has lost its leases."""


def make_request(
    dispatch: int, prompt: Prompt, prompt_tokens: Tokens, *, samples: int, sampling: Sampling, want_logprobs: bool
) -> Request:
    """The request of the n-th dispatch; its randomness depends on the run's seed and on n alone."""
    seed = int(np.random.SeedSequence([sampling.seed, dispatch]).generate_state(1, np.uint64)[0] >> 1)
    return Request(
        key=dispatch,
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        samples=samples,
        sampling=replace(sampling, seed=seed),
        want_logprobs=want_logprobs,
    )


class RolloutWorker:
    """One worker over one engine."""

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        engine: Engine,
        task: Task,
        codec: Codec,
        verifier: Verifier,
        snapshots: Path,
        settings: RolloutSettings,
    ) -> None:
        self.name = name
        self.ledger = ledger
        self.engine = engine
        self.task = task
        self.codec = codec
        self.verifier = verifier
        self.snapshots = snapshots
        self.settings = settings
        self.loaded_step = -1
        self._under_way = 0
        self._attempts: Counter[int] = Counter()
        self._verifying: list[Future[dict[int, Group]]] = []
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="verify")
        self._renewed = time.monotonic()
        self._totals: dict[str, Any] = {
            "busy_seconds": 0.0,
            "waiting_seconds": 0.0,
            "tokens": 0,
            "groups": 0,
            "requests_with_logprobs": 0,
        }

    def work(self) -> bool:
        """One moment of work: take leases, follow the weights, one engine step, commit what is verified.

        Returns whether there was anything to do; the caller waits a little otherwise.
        """
        started = time.monotonic()
        # Before anything is leased: a long engine step must not cost us leases whose groups are under way.
        self._renew()
        requests = self._lease()
        self._follow_weights()
        for request in requests:
            self.engine.submit(request)
            self._totals["requests_with_logprobs"] += request.want_logprobs
        self._under_way += len(requests)
        completed = self.engine.collect() if self._under_way else []
        if completed:
            self._verify(completed)
        committed = self._commit()
        active = bool(requests or committed or self._under_way)
        self._totals["busy_seconds" if active else "waiting_seconds"] += time.monotonic() - started
        return active

    def run(self, pause_seconds: float = 0.001) -> None:
        """Work until the run is no longer running; what is under way then is written after a resume."""
        while self.ledger.state == RUNNING:
            if not self.work():
                time.sleep(pause_seconds)
                self._totals["waiting_seconds"] += pause_seconds

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
        leases = self.ledger.lease(self.name, room, self.settings.lease_seconds)
        return [self._request(lease.dispatch, self.task.train[lease.prompt_index]) for lease in leases]

    def _request(self, dispatch: int, prompt: Prompt) -> Request:
        return make_request(
            dispatch,
            prompt,
            np.array(self.codec.encode(prompt), dtype=np.int32),
            samples=self.settings.group_size,
            sampling=self.settings.sampling,
            want_logprobs=self.settings.want_logprobs,
        )

    def _follow_weights(self) -> None:
        if not self.engine.capabilities.follows_weights:
            return
        snapshot = latest(self.snapshots)
        while snapshot is not None and snapshot.step != self.loaded_step:
            try:
                self.engine.load(snapshot.path)
            except FileNotFoundError:
                newer = latest(self.snapshots)
                if newer == snapshot:
                    raise
                # Pruned between our look and our read: there is a newer one.
                snapshot = newer
            else:
                self.loaded_step = snapshot.step

    def _verify(self, completed: list[Completed]) -> None:
        answered = []
        for item in completed:
            if not item.error:
                answered.append(item)
                self._under_way -= 1
                continue
            self._attempts[item.request.key] += 1
            self.ledger.record_event("generation failed", f"group {item.request.key}: {item.error}")
            if self._attempts[item.request.key] >= ATTEMPTS:
                raise EngineError(f"group {item.request.key} failed {ATTEMPTS} times; the last time: {item.error}")
            self.engine.submit(item.request)
        if answered:
            self._verifying.append(self._executor.submit(self._score, answered))

    def _score(self, completed: list[Completed]) -> dict[int, Group]:
        """Runs in the verifying thread; touches neither ledger nor engine."""
        unscored = [
            (self.codec.decode(response.tokens.tolist()), item.request.prompt.answer, item.request.prompt.text)
            for item in completed
            for response in item.responses
            if response.reward is None
        ]
        fresh = iter(self.verifier.score(unscored) if unscored else ())
        groups = {}
        for item in completed:
            verdicts = [next(fresh) if r.reward is None else Verdict(reward=r.reward) for r in item.responses]
            groups[item.request.key] = Group.from_responses(
                item.request.prompt.index,
                item.request.prompt_tokens,
                item.responses,
                verdicts,
                retokenized=not self.engine.capabilities.own_tokens,
            )
        return groups

    def _commit(self) -> int:
        done = [future for future in self._verifying if future.done()]
        if not done:
            return 0
        self._verifying = [future for future in self._verifying if not future.done()]
        groups = {key: group for future in done for key, group in future.result().items()}
        for group in groups.values():
            for problem in filter(None, group.problems):
                self.ledger.record_event("verification failed", f"prompt {group.prompt_index}: {problem}")
        self._totals["tokens"] += sum(len(group.response_tokens) for group in groups.values())
        self._totals["groups"] += len(groups)
        self.ledger.commit(self.name, groups, self._counters())
        return len(groups)

    def _renew(self) -> None:
        now = time.monotonic()
        if now - self._renewed > self.settings.lease_seconds / 4:
            self._renewed = now
            self.ledger.renew(self.name, self.settings.lease_seconds)
            self.ledger.report_worker(self.name, self._counters())

    def _counters(self) -> dict[str, Any]:
        engine = {f"engine/{name}": value for name, value in self.engine.counters.items()}
        return self._totals | engine | {"snapshot": self.loaded_step}
