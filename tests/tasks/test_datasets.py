"""Datasets by name, `hf:NAME:SPLIT`: from a directory, with no hub to be reached, and none of their code run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from driftproof.errors import TaskError
from driftproof.tasks import build
from driftproof.tasks.sources import read_rows

READ = """
import json, sys
from driftproof.tasks import TaskError, build
from driftproof.tasks.sources import read_rows
for source in sys.argv[2:]:
    try:
        print(json.dumps([row.fields for row in read_rows(source, "{}")]))
    except TaskError as error:
        print(json.dumps(str(error)))
task = build("math", path=sys.argv[1], problem_field="question", heldout=3)
print(json.dumps([len(task.train), sorted(prompt.answer for prompt in (*task.train, *task.heldout))]))
"""


def test_sources_of_all_kinds(tmp_path: Path) -> None:
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("datasets is not installed: pip install 'driftproof[datasets]'")
    rows = [{"question": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(8)]
    for name, content in (
        ("good/train.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        ("good/test.jsonl", json.dumps(rows[0]) + "\n"),
        ("broken/train.jsonl", '{"question": "a"}\n{"question": oops}\n'),
        ("code/code.py", f"open({str(tmp_path / 'ran')!r}, 'w')\nimport datasets\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    good = f"hf:{tmp_path}/good"
    bad = ("code:train", "broken:train", "nowhere:train", "good:validation", "good:other:train")
    sources = [f"{good}:test", *(f"hf:{tmp_path}/{name}" for name in bad), "hf:openai/gsm8k:main:test"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    # Whoever trusts all code in general has not asked us to run it.
    environment |= {"HF_DATASETS_TRUST_REMOTE_CODE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", READ, f"{good}:train", *sources], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    test, code, broken, nowhere, split, configuration, hub, task = map(json.loads, ended.stdout.splitlines())
    assert test == rows[:1]
    assert task == [5, sorted(row["answer"] for row in rows)]
    assert not (tmp_path / "ran").exists()
    said = (
        (code, "scripts are no longer supported"),
        (broken, "JSON"),
        (nowhere, "Couldn't find any data file"),
        (split, "Unknown split"),
        (configuration, "'other' not found"),
        (hub, "Couldn't reach 'openai/gsm8k' on the Hub"),
    )
    for error, words in said:
        assert words in error
        assert error.startswith("hf:")
        assert "\n" not in error
        assert error.endswith("or give the path of a local JSON lines or Parquet file")


def test_versions_that_may_run_foreign_code_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(__version__="3.6.0"))
    with pytest.raises(TaskError, match=r"datasets 3\.6\.0 may run code .*pip install -U 'driftproof\[datasets\]'"):
        list(read_rows("hf:openai/gsm8k:main:test", "{}"))


def test_without_the_library_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        TaskError, match=r"datasets is missing .*pip install 'driftproof\[datasets\]'.*local JSON lines"
    ):
        build("math", path="hf:openai/gsm8k:main:test")


def test_what_comes_up_in_the_middle_of_a_dataset_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        __version__ = "4.0.0"
        exceptions = SimpleNamespace(DatasetsError=KeyError)

        @staticmethod
        def load_dataset(name: str, split: str) -> Iterator[dict[str, str]]:
            yield {"problem": "1+1?", "answer": "2"}
            raise ImportError("To support decoding images, please install 'Pillow'.")

    monkeypatch.setitem(sys.modules, "datasets", Broken)
    with pytest.raises(TaskError, match=r"^hf:a/b:train: the dataset cannot be loaded: To support decoding images"):
        build("math", path="hf:a/b:train", heldout=0)
