"""Verifiers by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from driftproof.errors import VerifierError
from driftproof.types import Verdict
from driftproof.verify import build
from tests.verify.items import item


def test_exact_compares_whole_texts() -> None:
    verifier = build("exact")
    items = [item(" 132\n", "132"), item("132", "132 "), item("the sum is 132", "132"), item("", "132")]
    assert [verdict.reward for verdict in verifier.score(items)] == [1.0, 1.0, 0.0, 0.0]
    assert verifier.failures == {}
    verifier.close()


def test_a_function_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    verifier = build("foreign_verifiers:behave", processes=1, timeout_seconds=10)
    assert verifier.score([item("0.25")]) == [Verdict(reward=0.25)]
    verifier.close()


def test_a_function_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_verifier.py").write_text("def half(text, answer):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    verifier = build("my_verifier:half")
    assert verifier.score([item("")]) == [Verdict(reward=0.5)]
    verifier.close()


def test_an_unknown_name_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(VerifierError, match=r"'maths'; did you mean 'math'\? valid: exact, math, math-boxed, "):
        build("maths")


def test_a_reward_function_of_trls_form_gets_completions_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    verifier = build("foreign_verifiers:trl_style", timeout_seconds=20)
    verdicts = verifier.score([item("42", "42", "6*7"), item("41", "42", "6*7")])
    verifier.close()
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.25]
