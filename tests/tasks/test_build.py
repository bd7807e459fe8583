"""Tasks by name, and tasks checked against their verifiers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from driftproof.errors import TaskError
from driftproof.tasks import Task, arithmetic, build
from driftproof.types import Prompt
from tests.tasks.validate import validate


def test_a_task_is_built_by_name(tmp_path: Path) -> None:
    assert build("arithmetic", digits=1, heldout=10) == arithmetic(digits=1, heldout=10)
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n')
    assert build("jsonl", path=str(path), heldout=0).train == (Prompt(index=0, text="a", answer="b"),)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "arithmetics",
            {},
            "unknown task 'arithmetics'; did you mean 'arithmetic'? valid: aime24, aime25, amc23, arithmetic, gsm8k",
        ),
        (
            "arithmetic",
            {"digit": 3},
            "task 'arithmetic': unknown field 'digit'; did you mean 'digits'? valid: digits, heldout, seed",
        ),
        ("jsonl", {}, "task 'jsonl' needs the field 'path'"),
        ("arithmetic", {"digits": "two"}, "task 'arithmetic': digits is 'two': Input should be a valid integer"),
        ("jsonl", {"path": "x", "heldout": [1]}, "task 'jsonl': heldout is [1]: Input should be a valid integer"),
        ("arithmetic", {"digits": 0}, "arithmetic: digits is 0; it must be between 1 and 18"),
    ],
)
def test_a_task_that_cannot_be_built_is_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=re.escape(message)):
        build(name, **fields)


def test_a_task_that_does_not_fit_its_verifier_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "generous.py").write_text("def verify(text, answer):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    prompts = (Prompt(index=0, text="1+1=", answer="2"),)
    with pytest.raises(TaskError, match=r"does not tell the right answer '2' \(worth 1\.0\) from '3' \(worth 1\.0\)"):
        validate(Task(name="sums", train=prompts, heldout=(), verifier="generous:verify")).check()
    validate(Task(name="sums", train=prompts, heldout=(), verifier="exact")).check()
