"""The inbox over a run: leases, written groups, weights, and the counters of its workers.

Guarantees: every group of a request gets an outcome; a group that is bad costs the others nothing; a group that is sent
twice, by whomever, is recorded once; nothing enters the ledger that the learner cannot train on.
"""

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from driftproof.engines.protocol import Completed
from driftproof.errors import CodecError, ConfigError, GroupError, StaleInboxError, VerifierError
from driftproof.inbox import messages
from driftproof.inbox.reading import TOKEN_BYTES, GroupSize
from driftproof.inbox.workers import SenderEvents, Workers
from driftproof.ledger.leases import LocalLeases
from driftproof.ledger.reader import LedgerReader
from driftproof.rollout.requests import make_request
from driftproof.rollout.settings import RolloutSettings
from driftproof.run import RunDirectory
from driftproof.tasks.codec import Codec
from driftproof.tasks.protocol import Task
from driftproof.types import Channel, FinishReason, Group, Request, Response, Sampling, Verdict
from driftproof.verify import Item, Verifier
from driftproof.verify.judge import judge, troubles
from driftproof.weights.snapshots import Snapshot, latest, list_snapshots

RETRY_SECONDS = 1.0
"""Pause that a worker is asked for when no group is admitted."""
SENT = (".safetensors", ".json")
"""Endings of the files of a snapshot that are sent."""


class _Refused(ValueError):
    """A group that must not be recorded; the message names the field."""


class _Written(NamedTuple):
    """A group that was read and is in order."""

    worker: str
    """The ledger's name of who wrote it."""
    completed: Completed


@dataclass(eq=False)
class Inbox:
    """The rollout side of a run for workers of whatever kind.

    Its methods may be called by many threads at once, but `accept` by one at a time. Every call has a ledger connection
    of its own, so that it sees what a resume has changed.
    """

    run: RunDirectory
    task: Task
    codec: Codec
    vocabulary: int
    """Token ids of the model are below it."""
    open_verifier: Callable[[], Verifier]
    """Called at the first response without a reward, and again when the verifier has failed."""
    settings: RolloutSettings
    sampling: Sampling
    up_to_date: Callable[[], bool]
    """Whether the other fields still are what the run was configured with."""

    def __post_init__(self) -> None:
        with LedgerReader(self.run.ledger) as ledger:
            self.want_logprobs = Channel.BEHAVIOR_LOGPROBS in ledger.plan.channels
        if self.settings.group_size > messages.MAX_RESPONSES:
            raise ConfigError(
                f"rollouts.group_size is {self.settings.group_size}; an inbox takes groups of at most "
                f"{messages.MAX_RESPONSES:,} responses, built-in workers write larger ones (rollouts.workers)"
            )
        self._verifier = _OpenedOnDemand(self.open_verifier)
        self._workers = Workers()
        self._events = SenderEvents()

    @property
    def group_size(self) -> GroupSize:
        return GroupSize(samples=self.settings.group_size, max_tokens=self.sampling.max_tokens)

    def close(self) -> None:
        self._verifier.close()

    def status(self) -> messages.RunStatus:
        with LedgerReader(self.run.ledger) as ledger:
            return messages.RunStatus(**asdict(ledger.status()), steps=ledger.plan.steps)

    def lease(self, worker: str, count: int) -> messages.Prompts:
        """Up to `count` groups for a worker to write; none when no group is admitted."""
        self._check_settings()
        seconds = self.settings.lease_seconds
        with LocalLeases(self.run.ledger) as ledger:
            name, state = self._workers.admit(ledger, worker), ledger.state()
            leases = ledger.lease(name, min(count, messages.MAX_PROMPTS), seconds)
            with self._workers.reported(ledger, name) as reported:
                reported.deadlines |= {lease.dispatch: reported.seen + seconds for lease in leases}
                reported.add(requests_with_logprobs=len(leases) * self.want_logprobs)
        snapshot, variables = latest(self.run.snapshots), self.codec.chat_template_kwargs
        requests = [self._request(lease.dispatch, lease.prompt_index) for lease in leases]
        return messages.Prompts(
            state=cast(messages.State, state),
            step=None if snapshot is None else snapshot.step,
            lease_seconds=seconds,
            retry_after_seconds=0.0 if leases else RETRY_SECONDS,
            prompts=[messages.PromptMessage.of(request, variables) for request in requests],
        )

    def accept(self, groups: Sequence[messages.GroupMessage | messages.Refusal]) -> list[messages.Outcome]:
        """Check, verify and record groups as `read_groups` has read them; their outcomes, in their order.

        VerifierError where the verifier cannot be started; nothing is recorded then.
        """
        self._check_settings()
        with LocalLeases(self.run.ledger) as ledger:
            dispatched = ledger.status().dispatched
            read = [self._read(f"groups[{i}]", group, ledger, dispatched) for i, group in enumerate(groups)]
            written = [group.completed for group in read if isinstance(group, _Written)]
            judged = iter(judge(self.codec, self._verifier, written))
            outcomes = [
                group if isinstance(group, messages.Outcome) else self._record(ledger, group, next(judged))
                for group in read
            ]
            refused = [outcome for outcome in outcomes if outcome.outcome == "refused"]
            if refused:
                first = refused[0].problems[0]
                self._events.record(ledger, "inbox refused groups", f"{len(refused)} of {len(groups)}: {first}")
        return outcomes

    def weights(self) -> messages.Weights | None:
        """The newest snapshot; None before the first."""
        snapshot = latest(self.run.snapshots)
        if snapshot is None:
            return None
        files = [
            messages.WeightsFile(name=name, size=path.stat().st_size, url=f"/weights/{snapshot.step}/{name}")
            for name, path in _files(snapshot).items()
        ]
        return messages.Weights(step=snapshot.step, path=str(snapshot.path), files=files)

    def weights_file(self, step: int, name: str) -> BinaryIO | None:
        """A file of a snapshot, open; None where there is none of that name, or none any more."""
        with suppress(FileNotFoundError):  # pruned while we looked
            for snapshot in list_snapshots(self.run.snapshots):
                if snapshot.step == step and (path := _files(snapshot).get(name)) is not None:
                    return _open_regular(path)
        return None

    def _check_settings(self) -> None:
        """Raise StaleInboxError where the run was resumed with other settings."""
        if not self.up_to_date():
            raise StaleInboxError(
                "the run was resumed with other settings, or its config.toml cannot be read; start its inbox again"
            )

    def _request(self, dispatch: int, prompt_index: int) -> Request:
        """The request that a built-in worker would hand to its engine."""
        prompt = self.task.train[prompt_index]
        return make_request(
            dispatch,
            prompt,
            self.codec.encode(prompt),
            samples=self.settings.group_size,
            sampling=self.sampling,
            want_logprobs=self.want_logprobs,
        )

    def _read(
        self, where: str, group: messages.GroupMessage | messages.Refusal, ledger: LocalLeases, dispatched: int
    ) -> _Written | messages.Outcome:
        """A group as the engine of a built-in worker would have returned it, or why it is refused."""
        if isinstance(group, messages.Refusal):
            problems = [f"{messages.field_path((where, *place))}: {message}" for place, message in group.problems]
            said = messages.shown(problems, group.count)
            return messages.Outcome(dispatch=group.dispatch, outcome="refused", problems=said)
        problems = []
        if group.dispatch >= dispatched:
            problems.append(f"{where}.dispatch: {group.dispatch} was never leased; so far {dispatched} groups were")
        if len(group.responses) != (wanted := self.settings.group_size):
            problems.append(f"{where}.responses: {len(group.responses)} responses; a group has {wanted}")
            return messages.Outcome(dispatch=group.dispatch, outcome="refused", problems=problems)
        responses = []
        for position, response in enumerate(group.responses):
            try:
                responses.append(self._response(f"{where}.responses[{position}]", response))
            except _Refused as refused:
                problems.append(str(refused))
        if problems:
            return messages.Outcome(dispatch=group.dispatch, outcome="refused", problems=messages.shown(problems))
        name = self._workers.find(ledger, group.worker)
        if not ledger.holds(name, group.dispatch):
            self._events.record(ledger, "late commit", f"group {group.dispatch} of {name}, which has no lease of it")
            return messages.Outcome(dispatch=group.dispatch, outcome="duplicate")
        request = self._request(group.dispatch, ledger.prompt_of(group.dispatch))
        return _Written(name, Completed(request=request, responses=tuple(responses)))

    def _response(self, where: str, response: messages.ResponseMessage) -> Response:
        tokens = self._tokens(where, response)
        stop_ids = self.sampling.stop_ids
        if response.finish_reason == "stop" and tokens[-1] not in stop_ids:
            raise _Refused(
                f"{where}.tokens[{len(tokens) - 1}]: {tokens[-1]} is none of the stop_ids {list(stop_ids)}; after "
                "finish_reason 'stop' the stop token is the last"
            )
        if self.want_logprobs != (response.logprobs is not None):
            raise _Refused(
                f"{where}.logprobs: the objective needs them, one per token; text cannot have any"
                if self.want_logprobs
                else f"{where}.logprobs: the objective does not need them (want_logprobs is false); leave them out"
            )
        return Response(
            tokens=np.array(tokens, np.int32),
            finish_reason=FinishReason(response.finish_reason),
            behavior_logprobs=None if response.logprobs is None else np.array(response.logprobs, np.float32),
            reward=response.reward,
            retokenized=response.tokens is None,
        )

    def _tokens(self, where: str, response: messages.ResponseMessage) -> list[int]:
        """The token ids of a response; of text those that the learner's tokenizer makes of it."""
        if response.tokens is not None:
            for position, token in enumerate(response.tokens):
                if token >= self.vocabulary:
                    raise _Refused(
                        f"{where}.tokens[{position}]: {token} is outside the vocabulary of {self.vocabulary}"
                    )
            return response.tokens
        text, most = response.text or "", self.sampling.max_tokens
        if len(text) > most * TOKEN_BYTES:
            raise _Refused(f"{where}.text: {len(text):,} characters cannot be {most} tokens; max_tokens is {most}")
        try:
            tokens = self.codec.encode_response(text)
        except CodecError as error:
            raise _Refused(f"{where}.text: {error}") from error
        # What was cut off did not end, so it has no end-of-sequence token.
        tokens = tokens if response.finish_reason == "stop" else tokens[:-1]
        if len(tokens) > most:
            raise _Refused(f"{where}.text: {len(tokens)} tokens, the stop token included; max_tokens is {most}")
        if not tokens:
            raise _Refused(f"{where}.text: is empty, and nothing was cut off; finish_reason must be 'stop'")
        return tokens

    def _record(self, ledger: LocalLeases, written: _Written, group: Group) -> messages.Outcome:
        name, dispatch = written.worker, written.completed.request.key
        try:
            accepted = ledger.commit(name, {dispatch: group})
        except GroupError as error:
            return messages.Outcome(dispatch=dispatch, outcome="refused", problems=[str(error)])
        with self._workers.reported(ledger, name) as worker:
            worker.deadlines.pop(dispatch, None)
            worker.add(groups=accepted, tokens=accepted * len(group.response_tokens))
        if accepted:
            for kind, problem in troubles(group):
                ledger.record_event(kind, problem)
        return messages.Outcome(dispatch=dispatch, outcome="accepted" if accepted else "duplicate")


@dataclass(slots=True)
class _OpenedOnDemand:
    """A verifier that is started by the first response to be scored, and again after it has failed."""

    start: Callable[[], Verifier]
    started: Verifier | None = None

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        if self.started is None:
            self.started = self.start()
        try:
            return self.started.score(items)
        except VerifierError:
            self.close()
            raise

    def close(self) -> None:
        if self.started is not None:
            self.started.close()
            self.started = None


def _files(snapshot: Snapshot) -> dict[str, Path]:
    """The files of a snapshot that are sent, by name. A name from outside is looked up here and never made a path.

    Links are not followed: they may lead to anything that this user can read.
    """
    if snapshot.path.is_symlink():
        return {}
    return {
        path.name: path
        for path in sorted(snapshot.path.iterdir())
        if path.suffix in SENT and stat.S_ISREG(path.lstat().st_mode)
    }


def _open_regular(path: Path) -> BinaryIO:
    """A file that is no link, and did not become one since it was listed."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
