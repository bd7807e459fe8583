"""Agreement of a verifier with labels, on a file and through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driftproof.cli.main import main

SHARED = Path(__file__).parents[3] / "shared" / "data" / "recorded"
ROWS = [
    {"problem": "6*7", "answer": "42", "responses": [("\\boxed{42}", True), ("\\boxed{41}", False)]},
    {"problem": "1/2", "answer": "\\frac{1}{2}", "responses": [("\\boxed{0.5}", True), ("\\boxed{0.5}", False)]},
]


def write(path: Path) -> Path:
    lines = []
    for row in ROWS:
        responses = [{"text": text, "correct": correct} for text, correct in row["responses"]]
        lines.append(json.dumps(row | {"responses": responses}))
    path.write_text("\n".join(lines) + "\n")
    return path


def verified(file: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["verify", "--task", "math", str(file)]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_disagreements_are_named_by_line_and_response(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verified(write(tmp_path / "recorded.jsonl"), capsys)
    assert (found["agreement"], found["n"]) == (0.75, 4)
    assert found["disagreements"] == [
        {
            "line": 2,
            "response": 1,
            "reward": 1.0,
            "label": 0.0,
            "answer": "\\frac{1}{2}",
            "text": "\\boxed{0.5}",
            "problem": "",
        }
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recorded responses of ../shared/data")
@pytest.mark.parametrize(
    ("file", "least"), [pytest.param("gsm8k_gpt3.jsonl", 1.0, marks=pytest.mark.slow), ("math_qwen.jsonl", 0.995)]
)
def test_on_what_other_models_wrote(file: str, least: float, capsys: pytest.CaptureFixture[str]) -> None:
    found = verified(SHARED / file, capsys)
    assert isinstance(found["agreement"], float)
    assert found["agreement"] >= least
    # The one that is left is mislabelled: 10{,}000 is 10000.
    assert isinstance(found["disagreements"], list)
    assert [(d["line"], d["response"]) for d in found["disagreements"]] in ([], [(37, 7)])


def test_a_verifier_that_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--task", "maths", str(write(tmp_path / "recorded.jsonl"))]) == 2
    assert "did you mean 'math'" in capsys.readouterr().err
