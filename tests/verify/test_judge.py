"""Groups are made in one place: whichever way an answer comes, its rewards are the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from driftproof.engines.protocol import Capabilities, Completed
from driftproof.evaluation.heldout import evaluate
from driftproof.inbox.messages import GroupMessage, ResponseMessage
from driftproof.inbox.service import Inbox
from driftproof.ledger.ledger import Ledger
from driftproof.rollout.settings import RolloutSettings
from driftproof.rollout.worker import RolloutWorker
from driftproof.run import RunDirectory
from driftproof.runtime.build import open_inbox
from driftproof.tasks import Task
from driftproof.tasks.codec import Codec
from driftproof.types import FinishReason, Prompt, Request, Response, Sampling, Verdict
from driftproof.verify import Item, build
from driftproof.verify.judge import judge
from tests.inbox.live import make_run

QUESTION = "6+7="
TEXTS = ("3", "6", "12", "")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.fixture
def codec(tiny_model_dir: Path) -> Codec:
    return Codec(tiny_model_dir)


def answered(codec: Codec, *responses: Response, error: str = "", want_logprobs: bool = False) -> Completed:
    prompt = Prompt(index=3, text=QUESTION, answer="13")
    request = Request(
        key=0,
        prompt=prompt,
        prompt_tokens=codec.encode(prompt),
        samples=4,
        sampling=Sampling(max_tokens=4),
        want_logprobs=want_logprobs,
    )
    return Completed(request=request, responses=responses, error=error)


def response(codec: Codec, text: str, reward: float | None = None) -> Response:
    tokens = np.array(codec.encode_response(text), np.int32)
    return Response(tokens=tokens, finish_reason=FinishReason.STOP, reward=reward)


class Recording:
    """A verifier that keeps what it was asked."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        self.items: list[Item] = []

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        self.items += items
        return [Verdict(reward=float(len(item.response))) for item in items]

    def close(self) -> None: ...


def test_a_recorded_reward_stays_and_the_verifier_sees_the_rest_whole(codec: Codec) -> None:
    verifier = Recording()
    first = answered(codec, response(codec, "13"), response(codec, "12", reward=-7.5))
    second = answered(codec, response(codec, "6", reward=2.0))
    groups = judge(codec, verifier, [first, second])
    assert [group.rewards.tolist() for group in groups] == [[2.0, -7.5], [2.0]]
    assert [(i.response, i.answer, i.prompt) for i in verifier.items] == [("13", "13", QUESTION)]
    assert [group.prompt_index for group in groups] == [3, 3]


@pytest.mark.parametrize("want_logprobs", [False, True])
def test_a_request_that_failed_is_a_group_without_rewards(want_logprobs: bool, codec: Codec) -> None:
    (group,) = judge(codec, Recording(), [answered(codec, error="out of order", want_logprobs=want_logprobs)])
    assert (group.size, len(group.response_tokens), np.isnan(group.rewards).all()) == (4, 0, True)
    assert set(group.problems) == {"generation failed: out of order"}
    assert (group.behavior_logprobs is not None) == want_logprobs


class Table:
    """An engine that answers every prompt with the same texts."""

    capabilities = Capabilities(logprobs=False, follows_weights=False)
    room = len(TEXTS)

    def __init__(self, codec: Codec) -> None:
        self.counters: dict[str, float] = {}
        self.codec = codec
        self.waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        self.waiting.append(request)

    def collect(self) -> list[Completed]:
        waiting, self.waiting = self.waiting, []
        return [
            Completed(request=q, responses=tuple(response(self.codec, text) for text in TEXTS[: q.samples]))
            for q in waiting
        ]

    def load(self, snapshot: Path) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("verifier", ["foreign_verifiers:reads_prompts", "exact"])
def test_the_same_group_gets_the_same_rewards_from_worker_inbox_and_evaluation(
    verifier: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    codec = Codec(tiny_model_dir)
    runs = [tmp_path / name for name in ("worker", "inbox")]
    for directory in runs:
        directory.mkdir()
        make_run(directory, tiny_model_dir, "--task.verifier", verifier, "--verify.timeout_seconds", 60)
    by_worker, by_inbox = (directory / "run" for directory in runs)
    inbox = open_inbox(by_inbox)
    through_the_worker(by_worker, inbox.task, codec, verifier)
    through_the_inbox(inbox, codec)
    inbox.close()
    rewards = rewards_of(by_worker)
    assert len(rewards) == 8
    assert rewards_of(by_inbox) == rewards
    assert len(set(map(tuple, rewards.values()))) > 1

    with closing(build(verifier, timeout_seconds=60)) as scores:
        sampling = Sampling(max_tokens=4, stop_ids=codec.stop_ids)
        found = evaluate(Table(codec), inbox.task.train, codec, scores, sampling, samples=4)
    assert found.sampled == pytest.approx(np.mean(list(rewards.values())))


def through_the_worker(run: Path, task: Task, codec: Codec, verifier: str) -> None:
    directory = RunDirectory(path=run)
    sampling = Sampling(max_tokens=4, stop_ids=codec.stop_ids)
    with Ledger(directory.ledger) as ledger:
        scores = build(verifier, timeout_seconds=60)
        worker = RolloutWorker(
            "w", ledger, Table(codec), task, codec, scores, directory.snapshots, RolloutSettings(group_size=4), sampling
        )
        while ledger.status().ready < 8:
            worker.work()
        worker.close()


def through_the_inbox(inbox: Inbox, codec: Codec) -> None:
    responses = [
        ResponseMessage(tokens=codec.encode_response(text), finish_reason="stop")
        if position % 2
        else ResponseMessage(text=text, finish_reason="stop")
        for position, text in enumerate(TEXTS)
    ]
    leased = inbox.lease("w", 8).prompts
    groups = [GroupMessage(dispatch=prompt.dispatch, worker="w", responses=responses) for prompt in leased]
    assert {outcome.outcome for outcome in inbox.accept(groups)} == {"accepted"}


def rewards_of(run: Path) -> dict[int, list[float]]:
    """The rewards of the first eight groups by prompt."""
    with Ledger(RunDirectory(path=run).ledger) as ledger:
        records = [record for record in ledger.records() if record.dispatch < 8]
    return {record.group.prompt_index: record.group.rewards.tolist() for record in records if record.group}
