"""The rollout worker over a real engine, ledger and verifier; failures are injected around the real engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import Capabilities, Completed
from driftproof.errors import EngineError
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.reader import LedgerReader
from driftproof.ledger.records import STOPPING, Plan
from driftproof.rollout.settings import RolloutSettings
from driftproof.rollout.worker import ATTEMPTS, FAILED_GROUPS, RolloutWorker
from driftproof.tasks import arithmetic
from driftproof.tasks.codec import Codec
from driftproof.types import Channel, Request, Sampling
from driftproof.verify import build
from driftproof.weights.snapshots import Publisher, latest
from tests.groups import make_group

TASK = arithmetic(digits=1, heldout=10)
PLAN = Plan(seed=0, prompts=len(TASK.train), groups_per_step=4, max_staleness=0, steps=2)


class Failing:
    """The embedded engine, but every request, or every one of some prompts, fails `failures` times first."""

    def __init__(self, engine: EmbeddedEngine, failures: int, prompts: Container[int] | None = None) -> None:
        self.engine, self.failures, self.prompts = engine, failures, prompts
        self.failed: Counter[int] = Counter()
        self.broken: list[Completed] = []

    @property
    def capabilities(self) -> Capabilities:
        return self.engine.capabilities

    @property
    def counters(self) -> dict[str, float]:
        return {"coughs": 2}

    @property
    def room(self) -> int:
        return self.engine.room

    def submit(self, request: Request) -> None:
        concerned = self.prompts is None or request.prompt.index in self.prompts
        if concerned and self.failed[request.key] < self.failures:
            self.failed[request.key] += 1
            self.broken.append(Completed(request=request, responses=(), error="the server hung up"))
        else:
            self.engine.submit(request)

    def collect(self) -> list[Completed]:
        broken, self.broken = self.broken, []
        return broken + self.engine.collect()

    def load(self, snapshot: Path) -> None:
        self.engine.load(snapshot)

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "ledger.sqlite", PLAN) as made:
        yield made


@pytest.fixture
def engine(tiny_model_dir: Path) -> EmbeddedEngine:
    return EmbeddedEngine.from_directory(tiny_model_dir, slots=16)


def worker(
    ledger: Ledger,
    engine: EmbeddedEngine | Failing,
    model: Path,
    phase: Callable[[str], object] = lambda _: None,
    **settings: Any,
) -> RolloutWorker:
    codec = Codec(model)
    snapshots = ledger.path.parent / "snapshots"
    return RolloutWorker(
        "worker",
        ledger,
        engine,
        TASK,
        codec,
        build("exact"),
        snapshots,
        RolloutSettings(group_size=4, **settings),
        Sampling(max_tokens=4, stop_ids=codec.stop_ids),
        phase,
    )


def work_until_ready(rollouts: RolloutWorker, groups: int) -> None:
    deadline = time.monotonic() + 300
    ledger = rollouts.leases
    assert isinstance(ledger, LedgerReader)
    while ledger.status().ready < groups:
        assert time.monotonic() < deadline, ledger.status()
        rollouts.work()


def test_it_writes_what_is_admitted_and_no_more(ledger: Ledger, engine: EmbeddedEngine, tiny_model_dir: Path) -> None:
    rollouts = worker(ledger, engine, tiny_model_dir)
    work_until_ready(rollouts, 4)
    for _ in range(5):
        assert not rollouts.work(), "the step's groups are written; max_staleness is 0"
    status = ledger.status()
    assert (status.dispatched, status.leased, status.ready) == (4, 0, 4)
    batch = ledger.take(4)
    assert batch is not None
    codec = Codec(tiny_model_dir)
    for dispatch, group in enumerate(batch.groups):
        prompt = TASK.train[ledger.prompt_of(dispatch)]
        assert group.prompt_tokens.tolist() == codec.encode(prompt).tolist()
        texts = [codec.decode(tokens.tolist()) for tokens in group.split()]
        assert group.rewards.tolist() == [float(text.strip() == prompt.answer) for text in texts]
    rollouts.close()


def test_what_a_group_is_does_not_depend_on_what_else_is_under_way(
    tmp_path: Path, ledger: Ledger, tiny_model_dir: Path
) -> None:
    work_until_ready(worker(ledger, EmbeddedEngine.from_directory(tiny_model_dir, slots=16), tiny_model_dir), 4)
    with Ledger.create(tmp_path / "narrow.sqlite", PLAN) as other:
        work_until_ready(worker(other, EmbeddedEngine.from_directory(tiny_model_dir, slots=3), tiny_model_dir), 4)
        for wide, narrow in zip(ledger.records(), other.records(), strict=True):
            assert np.array_equal(wide.group.response_tokens, narrow.group.response_tokens)


def test_failed_generations_are_tried_again_and_counted(
    ledger: Ledger, engine: EmbeddedEngine, tiny_model_dir: Path
) -> None:
    work_until_ready(worker(ledger, Failing(engine, ATTEMPTS - 1), tiny_model_dir), 4)
    count, message = ledger.events()["generation failed"]
    assert count == 4 * (ATTEMPTS - 1)
    assert "the server hung up" in message


@pytest.mark.parametrize("objective_needs_logprobs", [False, True])
def test_a_group_that_cannot_be_written_is_committed_without_responses(
    objective_needs_logprobs: bool, tmp_path: Path, engine: EmbeddedEngine, tiny_model_dir: Path
) -> None:
    channels = frozenset({Channel.BEHAVIOR_LOGPROBS} if objective_needs_logprobs else set())
    with Ledger.create(tmp_path / "other.sqlite", replace(PLAN, channels=channels)) as ledger:
        prompt = ledger.prompt_of(2)
        work_until_ready(worker(ledger, Failing(engine, 1000, {prompt}), tiny_model_dir), 4)
        batch = ledger.take(4)
        assert batch is not None
        assert [len(group.response_tokens) > 0 for group in batch.groups] == [True, True, False, True]
        failed = batch.groups[2]
        assert (failed.prompt_index, failed.size) == (prompt, batch.groups[0].size)
        assert set(failed.finish_reasons) == {"failed"}
        assert set(failed.problems) == {"generation failed: the server hung up"}
        assert np.isnan(failed.rewards).all()
        events = ledger.events()
        assert events["generation failed"][0] == ATTEMPTS
        assert events["group without responses"] == (
            1,
            f"group 2 failed {ATTEMPTS} times; the last time: the server hung up",
        )


def test_an_engine_that_always_fails_ends_the_worker(
    tmp_path: Path, engine: EmbeddedEngine, tiny_model_dir: Path
) -> None:
    with Ledger.create(tmp_path / "long.sqlite", replace(PLAN, groups_per_step=40)) as ledger:
        rollouts = worker(ledger, Failing(engine, 1000), tiny_model_dir)
        with pytest.raises(EngineError, match=f"{FAILED_GROUPS} groups in a row could not be written; group 7 failed"):
            work_until_ready(rollouts, 40)
        assert ledger.status().ready < FAILED_GROUPS
        assert ledger.release("worker") == ledger.status().leased > 0, "its leases can be given to another"


def test_groups_that_fail_now_and_then_do_not_end_the_worker(
    tmp_path: Path, engine: EmbeddedEngine, tiny_model_dir: Path
) -> None:
    with Ledger.create(tmp_path / "long.sqlite", replace(PLAN, groups_per_step=40)) as ledger:
        failing = {ledger.prompt_of(dispatch) for dispatch in range(0, 40, 3)}
        work_until_ready(worker(ledger, Failing(engine, 1000, failing), tiny_model_dir), 40)
        assert ledger.events()["group without responses"][0] == len(failing) > FAILED_GROUPS


def test_it_follows_the_weights_and_never_works_with_old_ones(
    ledger: Ledger, engine: EmbeddedEngine, tiny_model_dir: Path
) -> None:
    rollouts = worker(ledger, engine, tiny_model_dir)
    publisher = Publisher(rollouts.weights.snapshots, tiny_model_dir)
    state = load_file(tiny_model_dir / "model.safetensors")
    publisher.publish(0, state)
    rollouts.work()
    assert rollouts.weights.loaded_step == 0
    publisher.publish(7, state)
    rollouts.work()
    assert rollouts.weights.loaded_step == 7
    newest = latest(rollouts.weights.snapshots)
    assert newest is not None
    (newest.path / "model.safetensors").unlink()
    rollouts.weights.loaded_step = -1
    with pytest.raises(FileNotFoundError):
        rollouts.work()


def test_log_probs_are_asked_for_exactly_when_the_plan_says_so(
    tmp_path: Path, engine: EmbeddedEngine, tiny_model_dir: Path
) -> None:
    plan = replace(PLAN, channels=frozenset({Channel.BEHAVIOR_LOGPROBS}))
    with Ledger.create(tmp_path / "corrected.sqlite", plan) as ledger:
        work_until_ready(worker(ledger, engine, tiny_model_dir), 4)
        assert all(record.group.behavior_logprobs is not None for record in ledger.records())
        assert ledger.workers()["worker"].requests_with_logprobs == 4


def test_a_verdict_that_comes_while_others_are_committed_is_not_lost(
    ledger: Ledger, engine: EmbeddedEngine, tiny_model_dir: Path
) -> None:
    class Late(Future[Any]):
        """Done as soon as somebody has seen that it is not."""

        seen = False

        def done(self) -> bool:
            seen, self.seen = self.seen, True
            return seen

    rollouts = worker(ledger, engine, tiny_model_dir)
    leases = ledger.lease("worker", 4, 60)
    first, late = Future[Any](), Late()
    for future, part in ((first, leases[:2]), (late, leases[2:])):
        future.set_result({lease.dispatch: make_group([1], [[2]], prompt_index=lease.prompt_index) for lease in part})
    rollouts._verifying = [first, late]
    rollouts.work()
    rollouts.work()
    assert ledger.status().ready == 4


def test_it_says_what_it_is_doing(ledger: Ledger, engine: EmbeddedEngine, tiny_model_dir: Path) -> None:
    told: list[str] = []
    rollouts = worker(ledger, engine, tiny_model_dir, phase=told.append)
    Publisher(rollouts.weights.snapshots, tiny_model_dir).publish(3, load_file(tiny_model_dir / "model.safetensors"))
    work_until_ready(rollouts, 4)
    while rollouts.work():
        pass
    order = [
        "asks the ledger for prompts", "loads the weights of step 3", "waits for its engine",
        "commits groups to the ledger", "waits for a prompt that it may lease",
    ]  # fmt: skip
    assert list(dict.fromkeys(phase for phase in told if phase != "waits for its verifier")) == order
    assert ledger.workers()["worker"].phase == "commits groups to the ledger"


def test_it_stops_when_the_run_stops(ledger: Ledger, engine: EmbeddedEngine, tiny_model_dir: Path) -> None:
    ledger.set_state(STOPPING)
    rollouts = worker(ledger, engine, tiny_model_dir)
    rollouts.run()
    assert ledger.status().dispatched == 0
