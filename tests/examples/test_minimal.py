"""The file to read first does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from driftproof.tiny.model import make_tiny_model

SCRIPT = Path(__file__).parents[2] / "examples" / "minimal.py"
NUMBER = r"(\d\.\d{3})"


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's base policy, which answers a third of the additions."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-qwen3").path


def test_the_accuracy_rises_on_data_four_steps_old(base_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, base_model], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = (float(re.search(f"accuracy {when} +{NUMBER}", done.stdout)[1]) for when in ("before", "after"))
    assert 0.28 < before < 0.38
    assert after > before + 0.15
    assert re.findall(r"age of the data (.*)", done.stdout) == ["4.0"] * 6


def test_it_can_be_read_at_once() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 150
