"""Prompts that are too long or stand on both sides of the split, and traces in which something is missing."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from driftproof.engines.recorded import RecordedEngine
from driftproof.evaluation.heldout import recorded_groups
from driftproof.tasks import Task, build, read_recorded, with_recorded
from driftproof.tasks.checks import limit_characters, limit_tokens, warnings
from driftproof.tasks.codec import Codec
from driftproof.tiny.model import make_tiny_model
from tests.cases.rows import LONG, ROWS, Rows, refusal, save
from tests.runtime.runs import Ended, train, write_recipe


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-bytes"
    make_tiny_model(path, tokenizer="bytes", train=False)
    return path


def trained(tmp_path: Path, model: Path, *settings: object) -> Ended:
    return train(write_recipe(tmp_path, model), "--dry-run", *settings)


def test_f17_a_prompt_that_is_too_long_is_named_by_its_row_or_dropped(byte_model: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "long.jsonl", [*ROWS, ROWS[0] | {"prompt": "9+9="}, ROWS[0] | {"prompt": "8+8="}, LONG])
    settings = ("--task.path", path, "--task.heldout", 1, "--task.verifier", "exact")
    refused = trained(tmp_path, byte_model, *settings)
    assert refused.code == 2
    assert f"{path}:7: the prompt '1111" in refused.stderr
    assert "is too long: it has 40,000 tokens" in refused.stderr
    assert 'task.too_long = "drop"' in refused.stderr
    dropped = trained(tmp_path, byte_model, *settings, "--task.too_long", "drop")
    assert dropped.code == 0, dropped.stderr
    assert f"warning: 1 prompts are too long and left out, like {path}:7" in dropped.stderr


def test_f17_what_is_left_is_numbered_anew_and_the_same_everywhere(byte_model: Path, tmp_path: Path) -> None:
    rows = [LONG | {"prompt": f"{i}" * 300} if i % 3 == 0 else ROWS[0] | {"prompt": f"{i}+0="} for i in range(12)]
    task = build("jsonl", path=str(save(tmp_path / "data.jsonl", rows)), heldout=4)
    codec = Codec(byte_model)
    left = limit_tokens(task, codec, 200, 16, drop=True)
    assert left == limit_tokens(task, Codec(byte_model), 200, 16, drop=True)
    assert [prompt.index for prompt in left.train] == list(range(len(left.train)))
    assert len(left.train) + len(left.heldout) == 8
    assert sorted(left.dropped) == sorted(f"{tmp_path / 'data.jsonl'}:{i + 1}" for i in (0, 3, 6, 9))
    assert "every prompt to train on is too long" in refusal(lambda: limit_tokens(task, codec, 4, 1, drop=True))


def test_f17_recorded_groups_are_dropped_with_their_prompts(byte_model: Path, tmp_path: Path) -> None:
    rows = []
    for i in range(10):
        text = "1" * (400 if i in (1, 4) else 2)
        responses = [{"text": text, "correct": True}, {"text": "2", "correct": False}]
        rows.append({"problem": f"{i}?", "answer": "1", "responses": responses})
    path = save(tmp_path / "trace.jsonl", rows)
    codec = Codec(byte_model)
    for task in (build("recorded", path=str(path)), with_recorded(build("arithmetic", digits=1, heldout=5), path)):
        left = limit_tokens(task, codec, 100, 4, drop=True)
        assert len(left.dropped) == 2
        assert [group.prompt for group in left.recorded] == list(left.train[len(left.train) - len(left.recorded) :])
        if left.recorded_heldout:
            assert [group.prompt for group in left.recorded_heldout] == list(left.heldout)
        texts = [text for group in (*left.recorded, *left.recorded_heldout) for text in group.texts]
        assert len(texts) == 16
        assert max(map(len, texts)) == 2
        said = refusal(partial(limit_tokens, task, codec, 100, 4, drop=False))
        assert "it and its longest response have" in said
        assert f"{path}:" in said


def test_f15_a_prompt_of_megabytes_is_refused_before_it_is_tokenized(
    byte_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "long.jsonl", [*ROWS, {"prompt": "1" * 3_000_000, "answer": "1"}])
    asked: list[int] = []
    encode = Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda codec, prompt: asked.append(len(prompt.text)) or encode(codec, prompt))
    settings = ("--task.path", path, "--task.heldout", 0, "--task.verifier", "exact")
    refused = trained(tmp_path, byte_model, *settings)
    assert f"{path}:5: the prompt" in refused.stderr
    assert "its prompt has 3,000,000 characters, task.max_characters is 1,000,000" in refused.stderr
    assert asked == []
    assert trained(tmp_path, byte_model, *settings, "--task.too_long", "drop").code == 0
    assert max(asked) < 10
    trace = [{"problem": "1?", "answer": "1", "responses": [{"text": "1" * 40, "correct": True}]}] * 2
    task = build("recorded", path=str(save(tmp_path / "trace.jsonl", trace)))
    assert "its longest response has 40 characters" in refusal(lambda: limit_characters(task, 39, drop=False))
    assert limit_characters(task, 40, drop=False) is task


def test_f18_duplicates_over_the_split_are_counted_and_told(byte_model: Path, tmp_path: Path) -> None:
    same = save(tmp_path / "same.jsonl", [ROWS[0]] * 8)
    (warning,) = warnings(build("jsonl", path=str(same), heldout=1))
    assert "1 of 1 held-out prompts are trained on as well" in warning
    assert f"{same}:" in warning
    (warning,) = warnings(build("jsonl", path=str(same), heldout=str(save(tmp_path / "other.jsonl", ROWS))))
    assert "1 of 4 held-out prompts are trained on as well" in warning
    trace = [{"problem": "1?", "answer": "1", "responses": [{"text": t, "correct": t == "1"} for t in "12"]}] * 5
    (warning,) = warnings(build("recorded", path=str(save(tmp_path / "trace.jsonl", trace))))
    assert "1 of 1 held-out prompts are trained on as well" in warning
    assert warnings(build("jsonl", path=str(save(tmp_path / "good.jsonl", ROWS)), heldout=1)) == []
    told = trained(tmp_path, byte_model, "--task.path", same, "--task.heldout", 2, "--task.verifier", "exact")
    assert told.code == 0
    assert "warning: 2 of 2 held-out prompts are trained on as well" in told.stderr


def test_f18_a_trace_with_a_held_out_question_is_refused_whatever_the_template(tmp_path: Path) -> None:
    held = save(tmp_path / "held.jsonl", [{"problem": "6 times 7?", "answer": "42"}])
    task = build(
        "math", path=str(save(tmp_path / "train.jsonl", [{"problem": "1+1?", "answer": "2"}])), heldout=str(held)
    )
    responses = [{"text": "42", "correct": True}, {"text": "41", "correct": False}]
    for text in ("6 times 7?", task.heldout[0].text):
        trace = save(tmp_path / "trace.jsonl", [{"problem": text, "answer": "42", "responses": responses}])
        assert "1 of 1 prompts are held out by task 'math'" in refusal(partial(with_recorded, task, trace))
    assert len(with_recorded(build("math", path=str(held), heldout=0), trace).train) == 2


def test_g26_groups_of_one_response_are_counted_and_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+1=", "completion": "2", "reward": 1.0} for i in range(5)]
    task: Task = build("recorded", path=str(save(tmp_path / "trace.jsonl", rows)), heldout_fraction=0.0)
    (warning,) = warnings(task)
    assert "5 of 5 recorded groups have one response: its advantage is 0, and nothing can be learned from it" in warning
    task = build("recorded", path=str(save(tmp_path / "b.jsonl", rows + rows[:2])), heldout_fraction=0.0)
    assert "3 of 5 recorded groups have one response" in warnings(task)[0]


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "1+1=", "completions": ["2", "3", "4"], "rewards": [1.0, None, 0.0]}],
        [{"prompt": "1+1=", "completion": c, "reward": r} for c, r in (("2", 1.0), ("3", None), ("4", 0.0))],
        [{"prompt": "1+1=", "choices": [{"text": t} for t in "234"], "rewards": [1, None, 0]}],
        [{"problem": "1+1=", "answer": "2", "responses": [
            {"text": "2", "correct": True}, {"text": "3", "correct": None}, {"text": "4", "reward": 0}]}],
    ],
)  # fmt: skip
def test_g06_a_null_among_the_rewards_is_no_reward(rows: Rows, byte_model: Path, tmp_path: Path) -> None:
    task = build("recorded", path=str(save(tmp_path / "trace.jsonl", rows)), heldout_fraction=0.0)
    np.testing.assert_equal(task.recorded[0].rewards, (1.0, math.nan, 0.0))
    assert task.recorded[0].mixed
    (group,) = recorded_groups(task.recorded, Codec(byte_model))
    np.testing.assert_equal(group.rewards, [1.0, math.nan, 0.0])
    assert group.problems == ("", "the trace has no reward for it", "")
    assert warnings(task) == ["1 of 3 recorded responses have no reward; they are trained on without effect"]
    assert isinstance(RecordedEngine(task.recorded, lambda text: [1]), RecordedEngine)


def test_g06_a_trace_without_any_reward_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "trace.jsonl", [{"prompt": "1+1=", "completions": ["2", "3"], "rewards": [None, None]}])
    assert refusal(lambda: read_recorded(path)).startswith(f"{path}: no response has a reward")
