"""Which final answer counts, and what is equal to what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftproof.errors import VerifierError
from driftproof.types import Verdict
from driftproof.verify import VerifierPool, build

pytest.importorskip("math_verify", reason="needs the extra driftproof[math]")
from driftproof.tasks.answers import last_boxed
from driftproof.verify.math import math
from tests.verify.items import item

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "recorded"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is \\boxed{18}", "18"),
        ("\\boxed{1} or rather \\boxed{18}.", "18"),
        ("18 eggs.\n#### 18", "18"),
        ("#### 1,234\n", "1234"),
        ("She makes $9*2=18 a day.\nA: 18", "18"),
        ("The answer is 18.", "18"),
        ("\\boxed{27}", "27.0"),
        ("\\boxed{0.5}", "\\frac{1}{2}"),
        ("\\boxed{\\left(3, \\pi/2\\right)}", "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("\\boxed{10000}", "10{,}000"),
        ("\\boxed{6}", "\\$6"),
        ("\\boxed{25}", "25\\%"),
        ("\\boxed{120}", "120^\\circ"),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}"),
        ("#### 3 \\boxed{18", "3"),
        ("2+2=4 " * 2_000 + "so 18", "18"),
    ],
)
def test_equal_answers(text: str, answer: str) -> None:
    assert math(text, answer) == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{18} or rather \\boxed{1}", "18"),
        ("\\boxed{}, 18", "18"),
        ("18\n#### 19\n18", "18"),
        ("18 is not it, 19 is", "18"),
        ("", "18"),
        ("I cannot say.", "18"),
        ("\\boxed{(3, \\pi)}", "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("\\boxed{0.33}", "\\frac{1}{3}"),
    ],
)
def test_different_answers(text: str, answer: str) -> None:
    assert math(text, answer) == 0.0


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.sampled_from(["\\boxed{%d}", "#### %d", "is %d"]))
@settings(max_examples=60, deadline=None)
def test_integers_are_equal_to_themselves_alone(a: int, b: int, form: str) -> None:
    assert math(form % a, str(b)) == float(a == b)
    assert math(form % a, str(a)) == 1.0


@given(st.text(st.sampled_from("\\boxed{}#$^_ 19afrc\n"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_response_gets_a_reward(text: str) -> None:
    assert math(text, "18") in (0.0, 1.0)


@given(st.text(st.sampled_from("ab{} \\{}19"), max_size=20), st.text(st.sampled_from("ab}\\ "), max_size=10))
def test_the_last_closed_box_is_found(content: str, before: str) -> None:
    if closed(content):
        assert last_boxed(before + " \\boxed{" + content + "} \\boxed{unfinished") == content
    else:
        assert last_boxed("\\boxed{" + content) != content


def closed(content: str) -> bool:
    """Whether the braces of `content` match each other, escaped ones aside."""
    depth, escaped = 0, False
    for character in content:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth < 0:
                return False
    return depth == 0 and not escaped


def test_an_answer_nobody_can_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot be read as mathematics"):
        math("\\boxed{1}", "")


def test_a_hostile_answer_is_wrong_without_being_computed() -> None:
    verifier = build("math", processes=1, timeout_seconds=20.0)
    verdicts = verifier.score([item("\\boxed{9^{9^{9}}}", "18"), item("\\boxed{18}", "18")])
    verifier.close()
    assert verdicts == [Verdict(reward=0.0), Verdict(reward=1.0)]


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "math_verify.py").write_text("raise ModuleNotFoundError(\"No module named 'math_verify'\")")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(VerifierError, match=r"pip install 'driftproof\[math\]'"):
        build("math")


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded data is not beside the repository")
@pytest.mark.parametrize(
    ("file", "least"), [pytest.param("gsm8k_gpt3.jsonl", 1.0, marks=pytest.mark.slow), ("math_qwen.jsonl", 0.995)]
)
def test_agreement_with_the_labels_of_recorded_responses(file: str, least: float) -> None:
    rows = [json.loads(line) for line in (RECORDED / file).read_text(encoding="utf-8").splitlines()]
    items = [item(response["text"], row["answer"]) for row in rows for response in row["responses"]]
    labels = [float(response["correct"]) for row in rows for response in row["responses"]]
    with VerifierPool("driftproof.verify.math:math", processes=2, timeout_seconds=20) as verifier:
        verdicts = verifier.score(items)
    agreement = sum(verdict.reward == label for verdict, label in zip(verdicts, labels, strict=True)) / len(labels)
    assert agreement >= least
