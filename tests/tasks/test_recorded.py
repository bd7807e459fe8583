"""Groups that other models wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from driftproof.errors import TaskError
from driftproof.tasks import RecordedGroup, arithmetic, read_recorded, recorded, with_recorded
from driftproof.types import Prompt

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "recorded"
RIGHT, WRONG = {"text": "2", "correct": True}, {"text": "3", "correct": False}


def write(path: Path, *groups: list[Any] | str) -> Path:
    rows = [{"problem": f"problem {i}", "answer": "2", "responses": group} for i, group in enumerate(groups)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_rows_become_groups(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    responses = [{**RIGHT, "model": "m"}, {"text": "", "reward": -0.5}, {"text": "x", "reward": 2}]
    path.write_text(json.dumps({"problem": "1+1=", "answer": "2", "system": "s", "level": 3, "responses": responses}))
    prompt = Prompt(index=0, text="1+1=", answer="2", system="s")
    assert read_recorded(path) == [RecordedGroup(prompt=prompt, texts=("2", "", "x"), rewards=(1.0, -0.5, 2.0))]


@pytest.mark.parametrize("seed", range(8))
def test_both_splits_have_their_share_of_mixed_groups(seed: int, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", *[[RIGHT, WRONG]] * 7, *[[RIGHT]] * 33, *[[WRONG, WRONG]] * 10)
    task = recorded(path, heldout_fraction=0.2, seed=seed)
    assert (len(task.train), len(task.heldout)) == (40, 10)
    assert [group.prompt for group in task.recorded] == list(task.train)
    assert [group.prompt for group in task.recorded_heldout] == list(task.heldout)
    assert [prompt.index for prompt in task.train] == list(range(40))
    assert [prompt.index for prompt in task.heldout] == list(range(10))
    assert {p.text for p in task.train} | {p.text for p in task.heldout} == {f"problem {i}" for i in range(50)}
    assert sum(group.mixed for group in task.recorded_heldout) in (1, 2)


def test_the_seed_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", *[[RIGHT, WRONG]] * 30)
    assert recorded(path, seed=1) == recorded(path, seed=1)
    assert recorded(path, seed=1).heldout != recorded(path, seed=2).heldout
    assert recorded(path, heldout_fraction=0.0).heldout == ()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 0.9, float("nan")])
def test_a_fraction_that_leaves_nothing_to_train_on_is_refused(fraction: float, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [RIGHT], [WRONG])
    with pytest.raises(TaskError, match=r"data\.jsonl: heldout_fraction is .* of 2 groups"):
        recorded(path, heldout_fraction=fraction)


@pytest.mark.parametrize(
    ("responses", "problem"),
    [
        ([], 'the field "responses" must be a list with at least one response, not []'),
        ("2", "the field \"responses\" must be a list with at least one response, not '2'"),
        ([RIGHT, "2"], "response 1 must be an object, not '2'"),
        ([{"correct": True}], 'response 0: "text" must be a text, not None'),
        ([{"text": 2, "correct": True}], 'response 0: "text" must be a text, not 2'),
        ([{"text": "\ud800", "correct": True}], 'response 0: "text" is no valid Unicode'),
        ([{"text": "2"}], 'response 0 needs either "correct" or "reward", and has neither'),
        ([RIGHT | {"reward": 1}], 'response 0 needs either "correct" or "reward", and has correct and reward'),
        ([{"text": "2", "correct": 1}], 'response 0: "correct" must be true or false, not 1'),
        ([{"text": "2", "correct": "true"}], "response 0: \"correct\" must be true or false, not 'true'"),
        ([RIGHT, {"text": "2", "reward": float("nan")}], 'response 1: "reward" must be a finite number, not nan'),
        ([{"text": "2", "reward": float("-inf")}], 'response 0: "reward" must be a finite number, not -inf'),
        ([{"text": "2", "reward": True}], 'response 0: "reward" must be a finite number, not True'),
        ([{"text": "2", "reward": 10**400}], 'response 0: "reward" must be a finite number, not 1000'),
    ],
)
def test_a_bad_response_is_named(responses: list[Any], problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [RIGHT], responses)
    with pytest.raises(TaskError) as refused:
        read_recorded(path)
    assert str(refused.value).startswith(f"{path}:2: {problem}")


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded data is not beside the repository")
@pytest.mark.parametrize(("file", "groups", "size"), [("math_qwen.jsonl", 50, 8), ("gsm8k_gpt3.jsonl", 1000, 4)])
def test_real_files(file: str, groups: int, size: int) -> None:
    task = recorded(RECORDED / file)
    assert len(task.train) + len(task.heldout) == groups
    assert {len(group.texts) for group in [*task.recorded, *task.recorded_heldout]} == {size}
    assert any(group.mixed for group in task.recorded)
    assert any(group.mixed for group in task.recorded_heldout)


def test_a_mixed_task_is_the_live_one_with_recorded_groups_behind_it(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [RIGHT, WRONG], [WRONG])
    live = arithmetic(digits=1, heldout=10)
    task = with_recorded(live, path)
    assert (task.live, task.heldout, task.verifier) == (live.train, live.heldout, live.verifier)
    assert [prompt.index for prompt in task.train] == list(range(len(live.train) + 2))
    assert task.train[: len(live.train)] == tuple(live.train)
    assert not task.answered
    assert [group.prompt for group in task.recorded] == list(task.train[len(live.train) :])
    assert [group.texts for group in task.recorded] == [("2", "3"), ("3",)]


def test_what_the_live_task_holds_out_is_not_trained_on(tmp_path: Path) -> None:
    live = arithmetic(digits=1, heldout=10)
    rows = [
        {"problem": f"{prompt.text} ", "answer": "2", "responses": [RIGHT]}
        for prompt in (live.train[0], *live.heldout[:2])
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(TaskError, match=r"data\.jsonl: 2 of 3 prompts are held out by task 'arithmetic'"):
        with_recorded(live, path)
