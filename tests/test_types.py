import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftproof.errors import GroupError, TaskError
from driftproof.learner.flat_batch import FlatBatch
from driftproof.types import MOST_COLUMN_CHARACTERS, Batch, FinishReason, Group, Prompt, Response, Sampling, Verdict
from tests.groups import make_group


def response(*tokens: int, logprobs: list[float] | None = None) -> Response:
    return Response(
        tokens=np.array(tokens, np.int32),
        finish_reason=FinishReason.STOP,
        behavior_logprobs=None if logprobs is None else np.array(logprobs, np.float32),
    )


def join(responses: list[Response], verdicts: list[Verdict]) -> Group:
    return Group.from_responses(7, np.array([1, 2], np.int32), responses, verdicts)


def test_responses_and_verdicts_become_a_group():
    group = join(
        [response(3, 4, logprobs=[-0.5, -1.0]), response(logprobs=[]), response(5, logprobs=[0.0])],
        [Verdict(reward=1.0), Verdict(reward=None, problem="time limit"), Verdict(reward=None)],
    )
    assert group.size == 3
    assert [tokens.tolist() for tokens in group.split()] == [[3, 4], [], [5]]
    assert group.rewards.tolist()[0] == 1.0
    assert np.isnan(group.rewards[1:]).all()
    assert group.problems == ("", "time limit", "no reward")
    assert group.behavior_logprobs is not None
    assert group.behavior_logprobs.tolist() == [-0.5, -1.0, 0.0]
    assert group.response_tokens.dtype == group.response_lengths.dtype == np.int32


def test_a_group_without_problems_or_logprobs_has_neither():
    group = join([response(3)], [Verdict(reward=0.0)])
    assert (group.problems, group.behavior_logprobs, group.retokenized) == ((), None, False)


@pytest.mark.parametrize(
    ("responses", "verdicts", "message"),
    [
        ([response(3)], [], "prompt 7: 1 responses but 0 verdicts"),
        ([], [], "prompt 7: a group needs at least one response"),
        ([response(3)], [Verdict(reward=math.inf)], "prompt 7, response 0: reward is inf; rewards must be finite"),
        ([response(3)], [Verdict(reward=math.nan)], "prompt 7, response 0: reward is nan; rewards must be finite"),
        (
            [response(3, logprobs=[-1.0]), response(4)],
            [Verdict(reward=0.0)] * 2,
            "prompt 7: 1 of 2 responses carry log-probs",
        ),
        (
            [response(3, logprobs=[-1.0]), response(4, 5, logprobs=[-1.0, math.nan])],
            [Verdict(reward=0.0)] * 2,
            "prompt 7, response 1: behavior_logprobs has nan; a log-probability must be finite and at most 0",
        ),
        (
            [response(logprobs=[]), response(4, logprobs=[0.25])],
            [Verdict(reward=0.0)] * 2,
            "prompt 7, response 1: behavior_logprobs has 0.25",
        ),
        ([response(3, logprobs=[-1.0, -1.0])], [Verdict(reward=0.0)], "2 behavior_logprobs for 1 response tokens"),
        ([response(3), response(4, -5)], [Verdict(reward=0.0)] * 2, "prompt 7: a token id is -5; ids start at 0"),
    ],
)
def test_a_group_that_must_not_enter_the_ledger_is_refused(
    responses: list[Response], verdicts: list[Verdict], message: str
):
    with pytest.raises(GroupError) as caught:
        join(responses, verdicts)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": np.empty(0, np.int32)}, "prompt 0: the prompt has no tokens"),
        ({"prompt_tokens": np.array([-1], np.int32)}, "prompt 0: a token id is -1"),
        ({"response_lengths": np.array([1, 1], np.int32)}, "3 response tokens do not match lengths that sum to 2"),
        ({"response_lengths": np.array([4, -1], np.int32)}, "do not match lengths"),
        ({"rewards": np.zeros(3)}, "2 responses, 3 rewards, 2 finish reasons"),
        ({"finish_reasons": ()}, "2 responses, 2 rewards, 0 finish reasons"),
        ({"problems": ("late",)}, "2 responses but 1 problems"),
        ({"rewards": np.array([0.0, math.nan])}, "prompt 0, response 1: reward is nan; rewards must be finite"),
        (
            {"rewards": np.array([math.inf, 0.0]), "problems": ("late", "")},
            "prompt 0, response 0: reward is inf; rewards must be finite",
        ),
    ],
)
def test_fields_that_disagree_are_refused(changes: dict[str, Any], message: str):
    group = make_group([1], [[2, 3], [4]])
    fields = {name: getattr(group, name) for name in Group.__dataclass_fields__}
    with pytest.raises(GroupError) as caught:
        Group(**fields | changes)
    assert message in str(caught.value)


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5))
def test_split_gives_the_responses_back(responses: list[list[int]]):
    assert [tokens.tolist() for tokens in make_group([1], responses).split()] == responses


def test_a_batch_counts_its_responses_and_tokens():
    batch = Batch(step=1, groups=(make_group([1], [[2, 3], []]), make_group([1], [[4]])), ages=(0, 1))
    assert (batch.responses, batch.tokens) == (3, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; a response needs at least 1 token"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be 0 (greedy) or a positive number"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1 (1 is off)"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"top_k": -1}, "top_k is -1; it must be 0 (off) or a positive count"),
    ],
)
def test_sampling_out_of_range_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling(**{"max_tokens": 4} | fields)


# Episodes


def episodes(**changes: Any) -> Group:
    """Two responses: one of two sequences, with a tool's answer between its tokens, and one of one."""
    fields: dict[str, Any] = {
        "prompt_index": 7,
        "prompt_tokens": np.array([1], np.int32),
        "response_tokens": np.array([2, 3, 4, 5, 6, 7], np.int32),
        "response_lengths": np.array([3, 2, 1], np.int32),
        "rewards": np.array([1.0, 0.0]),
        "finish_reasons": (FinishReason.STOP, FinishReason.LENGTH),
        "trained": np.array([True, False, True, False, True, True]),
        "sequence_of": np.array([0, 0, 1], np.int32),
        "behavior_logprobs": np.array([-1.0, -2.0, -3.0, -4.0], np.float32),
        "facts": {"turns": [2, 1], "tool_calls": 1},
    }
    return Group(**fields | changes)


def test_a_group_of_episodes():
    group = episodes()
    assert group.size == 2
    assert [tokens.tolist() for tokens in group.split()] == [[2, 3, 4], [5, 6], [7]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained": np.ones(5, bool)}, "trained has 5 bool for 6 response tokens"),
        ({"trained": np.ones(6, np.int32)}, "trained has 6 int32 for 6 response tokens"),
        ({"sequence_of": np.array([0, 1], np.int32)}, r"sequence_of is \[0, 1\] for 3 sequences"),
        ({"sequence_of": np.array([0, 1, 0], np.int32)}, "it must name the 2 responses in their order"),
        ({"sequence_of": np.array([0, 0, 2], np.int32)}, "it must name the 2 responses in their order"),
        ({"sequence_of": None}, "3 responses, 2 rewards, 2 finish reasons"),
        ({"behavior_logprobs": np.full(6, -1, np.float32)}, "6 behavior_logprobs for 4 trained tokens"),
        ({"facts": {"when": object()}}, "facts are no JSON object"),
        ({"facts": [1]}, "facts are no JSON object"),
        (
            {"behavior_logprobs": np.array([-1, -1, np.nan, -1], np.float32)},
            "prompt 7, response 0: behavior_logprobs has nan",
        ),
        (
            {"behavior_logprobs": np.array([-1, -1, -1, 1], np.float32)},
            "prompt 7, response 1: behavior_logprobs has 1.0",
        ),
    ],
)
def test_a_group_of_episodes_that_does_not_fit_together_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(GroupError, match=message):
        episodes(**changes)


def test_masks_of_responses_are_joined():
    masked = Response(
        tokens=np.array([3, 4], np.int32), finish_reason=FinishReason.STOP, trained=np.array([True, False])
    )
    group = join([response(5), masked], [Verdict(reward=0.0)] * 2)
    assert group.trained is not None
    assert group.trained.tolist() == [True, True, False]
    assert join([response(5)], [Verdict(reward=0.0)]).trained is None


def test_what_the_learner_cannot_train_yet_is_refused():
    with pytest.raises(GroupError, match="cannot be trained yet"):
        FlatBatch.of([episodes()], "mean", torch.device("cpu"))


def test_columns_of_a_prompt_are_json_and_bounded():
    prompt = Prompt(index=0, text="1+1=", answer="2", columns={"level": 3, "tests": [{"input": "x"}]}, source="a:1")
    assert prompt.columns["tests"] == [{"input": "x"}]
    assert {prompt, Prompt(index=0, text="1+1=", answer="2", columns=prompt.columns)} == {prompt}
    assert Prompt(index=0, text="1+1=", answer="2").columns == {}
    for columns, problem in (
        ({"image": b"png"}, "no JSON object: .*bytes"),
        ({"score": math.nan}, "no JSON object"),
        ({"long": "x" * MOST_COLUMN_CHARACTERS}, "have 1048588 characters .* leave out columns"),
    ):
        with pytest.raises(TaskError, match=problem):
            Prompt(index=0, text="1+1=", answer="2", columns=columns)
