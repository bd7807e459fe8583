"""The rollout worker: lease, generate, verify, commit.

Guarantees: every leased group is committed, or its lease is given up by the worker's death; a failed verification
costs the reward of one response and is recorded; a failed generation is tried again, and a group that fails again and
again is committed without responses. Only an engine that cannot write another prompt either ends the worker.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from driftproof.engines.protocol import Completed, Engine
from driftproof.errors import EngineError
from driftproof.faults import ENGINE, fault_point
from driftproof.ledger.store import RUNNING, Ledger
from driftproof.tasks.codec import Codec
from driftproof.tasks.protocol import Task
from driftproof.types import Group, Prompt, Request, Sampling, Tokens
from driftproof.verify import Verifier
from driftproof.verify.judge import judge
from driftproof.weights.snapshots import latest

ATTEMPTS = 3
"""Times a group is generated before it is given up."""


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
        self._refused_step = -1
        self._under_way = 0
        self._attempts: Counter[int] = Counter()
        self._doubted: dict[int, Completed] = {}
        """Requests that failed for the last time, by the key of the question that is asked instead."""
        self._given_up: dict[int, Group] = {}
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
        fault_point(ENGINE, EngineError)
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
            self.codec.encode(prompt),
            samples=self.settings.group_size,
            sampling=self.settings.sampling,
            want_logprobs=self.settings.want_logprobs,
        )

    def _follow_weights(self) -> None:
        if not self.engine.capabilities.follows_weights:
            return
        snapshot = latest(self.snapshots)
        while snapshot is not None and snapshot.step not in (self.loaded_step, self._refused_step):
            try:
                self.engine.load(snapshot.path)
            except FileNotFoundError:
                newer = latest(self.snapshots)
                if newer == snapshot:
                    raise
                # Pruned between our look and our read: there is a newer one.
                snapshot = newer
            except EngineError as error:
                if self.loaded_step < 0:
                    raise
                # The old weights stay; there will be newer ones.
                self._refused_step = snapshot.step
                message = f"{snapshot.path}: {error}; {self.name} goes on with step {self.loaded_step}"
                self.ledger.record_event("snapshot not loaded", message)
            else:
                self.loaded_step = snapshot.step

    def _verify(self, completed: list[Completed]) -> None:
        answered = []
        for item in completed:
            if item.request.key in self._doubted:
                self._give_up(self._doubted.pop(item.request.key), question=item)
            elif item.error:
                self._try_again(item)
            else:
                self._under_way -= 1
                answered.append(item)
        if answered:
            self._verifying.append(self._executor.submit(self._score, answered))

    def _try_again(self, item: Completed) -> None:
        """Submit a request that failed once more; at last ask for something else, to tell whose fault it is."""
        request = item.request
        self._attempts[request.key] += 1
        self.ledger.record_event("generation failed", f"group {request.key}: {item.error}")
        if self._attempts[request.key] < ATTEMPTS:
            self.engine.submit(request)
            return
        index = request.prompt.index
        # One of the same kind: recorded prompts stand behind the live ones.
        other = self.task.train[index - 1 if index else min(1, len(self.task.train) - 1)]
        # No dispatch is negative.
        question = replace(self._request(request.key, other), key=-1 - request.key, samples=1)
        self._doubted[question.key] = item
        self.engine.submit(question)

    def _give_up(self, item: Completed, question: Completed) -> None:
        """Commit a group that cannot be written without responses, as the engine can write others."""
        failure = f"group {item.request.key} failed {ATTEMPTS} times; the last time: {item.error}"
        if question.error:
            raise EngineError(f"{failure}; and another prompt: {question.error}")
        self.ledger.record_event("group without responses", failure)
        self._under_way -= 1
        (self._given_up[item.request.key],) = judge(self.codec, self.verifier, [item])

    def _score(self, completed: list[Completed]) -> dict[int, Group]:
        """Runs in the verifying thread; touches neither ledger nor engine."""
        groups = judge(self.codec, self.verifier, completed)
        return {item.request.key: group for item, group in zip(completed, groups, strict=True)}

    def _commit(self) -> int:
        done = [future for future in self._verifying if future.done()]
        if not (done or self._given_up):
            return 0
        self._verifying = [future for future in self._verifying if not future.done()]
        groups, failed = {key: group for future in done for key, group in future.result().items()}, self._given_up
        self._given_up = {}
        for group in groups.values():
            for problem in filter(None, group.problems):
                self.ledger.record_event("verification failed", f"prompt {group.prompt_index}: {problem}")
        self._totals["tokens"] += sum(len(group.response_tokens) for group in groups.values())
        self._totals["groups"] += len(groups)
        self.ledger.commit(self.name, groups | failed, self._counters())
        return len(groups) + len(failed)

    def _renew(self) -> None:
        now = time.monotonic()
        if now - self._renewed > self.settings.lease_seconds / 4:
            self._renewed = now
            self.ledger.renew(self.name, self.settings.lease_seconds)
            self.ledger.report_worker(self.name, self._counters())

    def _counters(self) -> dict[str, Any]:
        engine = {f"engine/{name}": value for name, value in self.engine.counters.items()}
        return self._totals | engine | {"snapshot": self.loaded_step}
