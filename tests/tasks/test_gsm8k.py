"""GSM8K in its published format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driftproof.errors import TaskError
from driftproof.tasks import gsm8k
from tests.tasks.validate import validate

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"


def write(path: Path, *answers: str) -> Path:
    path.write_text("\n".join(json.dumps({"question": "How many?", "answer": answer}) for answer in answers))
    return path


def test_the_gold_answer_follows_the_last_marker(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", "2*9=<<2*9=18>>18\n#### 18", "#### no\n####  1,234,567 ", "#### -3")
    task = gsm8k(path, heldout=write(tmp_path / "test.jsonl", "#### 5"), system="Think.")
    assert [prompt.answer for prompt in task.train] == ["18", "1234567", "-3"]
    assert [prompt.answer for prompt in task.heldout] == ["5"]
    assert {(prompt.text, prompt.system) for prompt in task.train} == {("How many?", "Think.")}
    assert task.verifier == "math"


@pytest.mark.parametrize(("answer", "problem"), [("18", 'has no "####"'), ("so\n#### ,", 'has nothing after "####"')])
def test_a_row_without_a_gold_answer_is_named(answer: str, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", "#### 1", answer)
    with pytest.raises(TaskError, match=r"train\.jsonl:2: the field \"answer\" " + problem):
        gsm8k(path, heldout=0)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published data is not beside the repository")
def test_the_published_files() -> None:
    pytest.importorskip("math_verify", reason="needs the extra driftproof[math]")
    task = gsm8k(PUBLISHED / "train.jsonl", heldout=PUBLISHED / "test.jsonl")
    assert (len(task.train), len(task.heldout)) == (7473, 1319)
    assert all(prompt.answer.removeprefix("-").isdecimal() for prompt in task.train)
    validate(task).check()
