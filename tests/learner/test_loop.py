"""The learner's loop over a real ledger, publisher and model; the groups are written by hand while it waits."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driftproof.errors import DivergenceError, StallError
from driftproof.learner.learner import Learner
from driftproof.learner.loop import LearnerLoop
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import STOPPING, Counters, Plan
from driftproof.metrics.collapse import SIGNS_OF_COLLAPSE
from driftproof.weights.checkpoints import list_checkpoints
from driftproof.weights.snapshots import Publisher, latest, list_snapshots
from tests.groups import make_group

from .tiny import tiny_learner

STEPS = 5


class Recording:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self.logged.append((step, metrics))

    def close(self) -> None:
        pass


class Run:
    """The parts of a run, synchronous: a group is admitted once the step before is recorded."""

    def __init__(self, directory: Path, steps: int = STEPS) -> None:
        plan = Plan(seed=0, prompts=7, groups_per_step=2, max_staleness=0, steps=steps)
        self.ledger = Ledger.create(directory / "ledger.sqlite", plan)
        (directory / "base").mkdir()
        self.publisher = Publisher(directory / "snapshots", directory / "base", keep=9)
        self.snapshots, self.checkpoints = directory / "snapshots", directory / "checkpoints"
        self.skipped = directory / "skipped"
        self.tracker = Recording()
        self.seen: list[int] = []
        """The snapshot that each group would have been written with."""

    def write(self) -> None:
        for lease in self.ledger.lease("a", 9, 100.0):
            newest = latest(self.snapshots)
            self.seen.append(-1 if newest is None else newest.step)
            group = make_group([1], [[2, 3], [4]], [1.0, 0.0], prompt_index=lease.prompt_index)
            self.ledger.commit("a", {lease.dispatch: group}, Counters(busy_seconds=1.5 * len(self.seen), tokens=3))

    def learn(
        self,
        learner: Learner,
        while_waiting: Callable[[], object] | None = None,
        stall_seconds: float = 600.0,
        phase: Callable[[str], object] = lambda _: None,
        **settings: Any,
    ) -> None:
        learner.settings = replace(learner.settings, **settings)
        self.publisher.publish(learner.step, learner.policy.published())
        LearnerLoop(
            self.ledger,
            learner,
            self.publisher,
            self.checkpoints,
            self.skipped,
            [self.tracker],
            while_waiting or self.write,
            stall_seconds=stall_seconds,
            phase=phase,
        ).run()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.ledger.close()


def test_weights_are_published_before_the_groups_that_need_them_are_admitted(run: Run):
    run.learn(tiny_learner())
    assert run.seen == [step for step in range(STEPS) for _ in range(2)]
    assert [snapshot.step for snapshot in list_snapshots(run.snapshots)] == list(range(STEPS + 1))
    assert run.ledger.step == STEPS
    assert all(record.age == 0 for record in run.ledger.records())


def test_every_step_is_recorded_once_in_ledger_and_trackers(run: Run):
    run.learn(tiny_learner(), checkpoint_every=2)
    assert [step for step, _ in run.tracker.logged] == list(range(1, STEPS + 1))
    assert run.ledger.steps() == [{"step": step, **metrics} for step, metrics in run.tracker.logged]
    assert [metrics["rollout/busy_seconds"] for _, metrics in run.tracker.logged] == [3.0] * STEPS
    names = ("record", "checkpoint", "wait", "train", "publish")
    for _, metrics in run.tracker.logged:
        parts = sum(metrics[f"time/{name}_seconds"] for name in names)
        assert parts == pytest.approx(metrics["time/step_seconds"])
        assert metrics["time/record_seconds"] >= 0
    # The checkpoint of a step counts in the next one's time.
    assert [s for s, metrics in run.tracker.logged if metrics["time/checkpoint_seconds"] > 0] == [3, 5]


def test_phases_are_told_in_words(run: Run):
    said: list[str] = []
    run.learn(tiny_learner(), phase=said.append, checkpoint_every=4)
    turns = [phase for phase, before in zip(said, ["", *said], strict=False) if phase != before]
    step = ["waits for groups", "trains a step", "publishes weights", "records its step"]
    assert turns == [*step * 4, "writes a checkpoint", *step, "writes a checkpoint"]


def test_snapshots_and_checkpoints_come_at_their_intervals_and_at_the_end(run: Run):
    run.learn(tiny_learner(), publish_every=2, checkpoint_every=2)
    assert [snapshot.step for snapshot in list_snapshots(run.snapshots)] == [0, 2, 4, 5]
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step-00000004", "step-00000005"]


def test_a_stop_trains_no_more_loses_nothing_and_can_be_gone_on_from(run: Run):
    learner = tiny_learner()

    def write_and_stop() -> None:
        run.write()
        if run.ledger.step == 2:
            run.ledger.set_state(STOPPING)

    run.learn(learner, write_and_stop)
    status = run.ledger.status()
    assert (learner.step, status.step, status.ready) == (2, 2, 2)
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step-00000002"]
    run.ledger.rewind(2)
    run.learn(learner)
    assert run.ledger.step == STEPS
    assert [metrics["step"] for metrics in run.ledger.steps()] == list(range(1, STEPS + 1))


def test_a_wait_without_end_is_an_error_that_says_what_is_there(run: Run):
    run.ledger.lease("a", 1, 100.0)
    with pytest.raises(StallError, match=r"waited 0 s for 2 groups; 0 are ready, 1 are leased; workers: \{\}"):
        run.learn(tiny_learner(), lambda: None, stall_seconds=0.01)


def test_a_wait_in_which_groups_come_is_not_without_end(run: Run):
    """Each of the two groups takes most of the limit, and both together more than it."""
    written: list[float] = []

    def write_slowly() -> None:
        if not run.ledger.status().leased:
            run.ledger.lease("a", 2, 100.0)
            written[:] = [time.monotonic()]
        if time.monotonic() - written[-1] > 1.5:
            dispatch = 2 * run.ledger.step + len(written) - 1
            group = make_group([1], [[2, 3], [4]], [1.0, 0.0], prompt_index=run.ledger.prompt_of(dispatch))
            run.ledger.commit("a", {dispatch: group})
            written.append(time.monotonic())
        time.sleep(0.01)
        if run.ledger.step == 1:
            run.ledger.set_state(STOPPING)

    run.learn(tiny_learner(), write_slowly, stall_seconds=2.5)
    assert run.ledger.step == 1


def write_badly(run: Run, good: Callable[[int], bool] = lambda step: False) -> Callable[[], None]:
    """Groups whose gradient is not finite, but in steps that are `good`."""

    def write() -> None:
        for lease in run.ledger.lease("a", 9, 100.0):
            reward = 1.0 if good(run.ledger.step + 1) else 1e300
            group = make_group([1], [[2], [3]], [reward, 0.0], prompt_index=lease.prompt_index)
            run.ledger.commit("a", {lease.dispatch: group})

    return write


def test_a_skipped_step_is_an_event_and_its_groups_are_kept(run: Run):
    run.learn(tiny_learner(), write_badly(run))
    count, message = run.ledger.events()["step skipped"]
    assert count == STEPS
    path = run.skipped / f"step-{STEPS:08d}.jsonl"
    assert message == f"step {STEPS}: the loss was nan, the gradient nan; its 2 groups are in {path}"
    assert len(list(run.skipped.iterdir())) == STEPS
    assert len(path.read_text().splitlines()) == 2


def test_steps_skipped_in_a_row_stop_the_run_with_everything_saved(run: Run):
    learner = tiny_learner()
    sentence = rf"2 steps in a row had no finite .* step 4; .* groups in {run.skipped}, and go on with a lower"
    with pytest.raises(DivergenceError, match=sentence):
        run.learn(learner, write_badly(run, good=lambda step: step == 2), max_skipped=2)
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step-00000004"]
    assert (run.ledger.state(), run.ledger.step) == (STOPPING, 4)
    run.ledger.rewind(4)
    run.learn(learner, write_badly(run), max_skipped=2)
    assert run.ledger.step == STEPS, "after a resume the count begins anew"


def test_weights_that_are_not_finite_are_neither_published_nor_saved(run: Run):
    learner = tiny_learner(lr=math.inf)
    with pytest.raises(DivergenceError, match=r"step 1 made weights .* Go on from the start with a lower --learner.lr"):
        run.learn(learner)
    assert [snapshot.step for snapshot in list_snapshots(run.snapshots)] == [0]
    assert list_checkpoints(run.checkpoints) == []
    assert run.ledger.step == 0
    assert run.ledger.rewind(0) == 2


def worse_and_worse(run: Run) -> Callable[[], None]:
    """Every response is right at first, and none after that."""

    def write() -> None:
        for lease in run.ledger.lease("a", 9, 100.0):
            rewards = [1.0, 1.0] if run.ledger.step < FALL else [0.0, 0.0]
            group = make_group([1], [[2, 3], [4]], rewards, prompt_index=lease.prompt_index)
            run.ledger.commit("a", {lease.dispatch: group})

    return write


FALL = max(limit.window for limit in SIGNS_OF_COLLAPSE)


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path, steps=FALL + 6)
    yield run
    run.ledger.close()


@pytest.mark.parametrize(("on_collapse", "steps", "events"), [("warn", 6, 1), ("stop", 3, 1), ("off", 6, 0)])
def test_a_sign_of_collapse_is_answered_as_asked(long_run: Run, on_collapse: str, steps: int, events: int):
    long_run.learn(tiny_learner(), worse_and_worse(long_run), on_collapse=on_collapse)
    assert long_run.ledger.step == FALL + steps
    count, message = long_run.ledger.events().get("sign of collapse", (0, ""))
    assert count == events
    if events:
        assert message == f"step {FALL + 3}: reward was 0.7 on average over the last 10 steps, below 0.75"


def test_a_run_goes_on_after_a_stop_for_a_sign_of_collapse(long_run: Run):
    learner = tiny_learner()
    long_run.learn(learner, worse_and_worse(long_run), on_collapse="stop")
    assert [path.name for path in list_checkpoints(long_run.checkpoints)] == [f"step-{FALL + 3:08}"]
    long_run.ledger.rewind(FALL + 3)
    long_run.learn(learner, worse_and_worse(long_run), on_collapse="stop")
    assert long_run.ledger.step == FALL + 6
    assert long_run.ledger.events()["sign of collapse"][0] == 1
