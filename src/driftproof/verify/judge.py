"""From an engine's answers to groups: the only place where responses become text, get rewards and become a group.

Guarantees: the same answer gets the same rewards on every way (rollout worker, inbox, evaluation, lab); a recorded
reward stays what it is, and the verifier is not asked; a request that failed becomes a group without rewards.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from driftproof.engines.protocol import Completed
from driftproof.tasks.codec import Codec
from driftproof.types import FinishReason, Group, Response, Verdict
from driftproof.verify.protocol import Item, Verifier


def judge(codec: Codec, verifier: Verifier, completed: Sequence[Completed]) -> list[Group]:
    """One group per completed request, in their order; the verifier scores what has no reward yet, all at once.

    VerifierError where it can no longer be started, GroupError where responses of one request do not belong together.
    """
    items = [
        Item.of(one.request.prompt, codec.decode(response.tokens), response.tokens, group)
        for group, one in enumerate(completed)
        for response in one.responses
        if response.reward is None
    ]
    fresh = iter(verifier.score(items) if items else ())
    return [_failed(one) if one.error else _group(one, fresh) for one in completed]


def troubles(group: Group) -> Iterator[tuple[str, str]]:
    """The kind and text of an event for each response whose verification went wrong."""
    for reward, problem in zip(group.rewards, group.problems, strict=False):
        if problem:
            kind = "verification failed" if math.isnan(reward) else "response broke its verifier"
            yield kind, f"prompt {group.prompt_index}: {problem}"


def _group(completed: Completed, fresh: Iterator[Verdict]) -> Group:
    rewards = [response.reward for response in completed.responses]
    verdicts = [next(fresh) if reward is None else _on_record(reward) for reward in rewards]
    request = completed.request
    return Group.from_responses(request.prompt.index, request.prompt_tokens, completed.responses, verdicts)


def _on_record(reward: float) -> Verdict:
    return (
        Verdict(reward=None, problem="the trace has no reward for it") if math.isnan(reward) else Verdict(reward=reward)
    )


def _failed(completed: Completed) -> Group:
    """A group of which the engine wrote nothing: it is trained without effect, and says why."""
    request = completed.request
    logprobs = np.empty(0, np.float32) if request.want_logprobs else None
    response = Response(tokens=np.empty(0, np.int32), finish_reason=FinishReason.FAILED, behavior_logprobs=logprobs)
    verdict = Verdict(reward=None, problem=f"generation failed: {completed.error}")
    responses, verdicts = [response] * request.samples, [verdict] * request.samples
    return Group.from_responses(request.prompt.index, request.prompt_tokens, responses, verdicts)
