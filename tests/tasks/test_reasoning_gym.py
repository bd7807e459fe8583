"""Puzzles of reasoning-gym: made, split, scored by their own scorers, and trained on through the command line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from driftproof.cli.main import main
from driftproof.errors import TaskError
from driftproof.tasks import Task, build
from driftproof.verify import build as build_verifier
from tests.tasks.validate import validate
from tests.verify.items import item

DATASETS = ("chain_sum", "leg_counting")
SHOW = """
from driftproof.tasks import build
task = build("reasoning_gym", dataset="word_ladder", size=20, heldout=4)
assert len(task.train) == 16
print(task.train, task.heldout)
"""


@pytest.fixture(autouse=True, scope="module")
def _library() -> None:
    # Here and not above: it takes seconds to import.
    pytest.importorskip("reasoning_gym", reason="pip install 'driftproof[reasoning-gym]'")


def puzzles(dataset: str, **fields: object) -> Task:
    return build("reasoning_gym", dataset=dataset, **({"size": 30, "heldout": 10} | fields))


@pytest.mark.parametrize("dataset", DATASETS)
def test_puzzles_are_made_and_the_scorer_knows_them(dataset: str) -> None:
    task = puzzles(dataset)
    assert (len(task.train), len(task.heldout)) == (20, 10)
    assert len({prompt.text for prompt in (*task.train, *task.heldout)}) == 30
    assert task == puzzles(dataset)
    assert task.train != puzzles(dataset, seed=1).train
    assert all(prompt.text.endswith("</answer>.") for prompt in task.train)
    assert all(task.gold(prompt) not in ("", prompt.answer) for prompt in task.train)
    # Importing it is part of the verifier's first answer.
    validate(task, limit=4, timeout_seconds=60).check()


def test_what_counts_as_an_answer() -> None:
    (prompt, *_), other = puzzles("chain_sum").train, puzzles("chain_sum", seed=1).train[0]
    gold = json.loads(prompt.answer)["answer"]
    stranger = json.dumps(json.loads(prompt.answer) | {"answer": "another version's"})
    items = [
        item(f"I think <answer>1</answer>, no: <answer>{gold}</answer>", prompt.answer, prompt.text),
        item(f" {gold}\n", prompt.answer, prompt.text),
        item(f"<answer>{gold}</answer>", stranger, prompt.text),
        item(f"<answer>{int(gold) + 1}</answer>", other.answer, other.text),
    ]
    with contextlib.closing(build_verifier("driftproof.verify.reasoning_gym:score", timeout_seconds=60)) as verifier:
        right, bare, unknown, wrong = verifier.score(items)
    assert right.reward == bare.reward == 1
    assert wrong.reward is not None
    assert wrong.reward < 1
    assert unknown.reward is None
    assert "is not the one of the task" in unknown.problem


def test_options_are_those_of_the_dataset() -> None:
    task = puzzles("chain_sum", options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    assert all(len(prompt.text.split(":")[1].split("=")[0].split()) == 3 for prompt in task.train)
    for dataset, options, message in (
        ("chain_sums", {}, r"unknown reasoning_gym dataset 'chain_sums'; did you mean 'chain_sum'\?"),
        ("chain_sum", {"terms": 3}, "'chain_sum' with options .*'terms'"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, "max_terms must be >= min_terms"),
    ):
        with pytest.raises(TaskError, match=message):
            puzzles(dataset, options=options)


@pytest.mark.slow
def test_puzzles_that_differ_from_process_to_process_need_one_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(TaskError, match=r"'word_ladder' makes other puzzles .*PYTHONHASHSEED=0"):
        puzzles("word_ladder")
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    assert len({subprocess.check_output([sys.executable, "-c", SHOW], env=environment) for _ in range(2)}) == 1


def test_from_the_command_line(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"name": "reasoning_gym", "dataset": "chain_sum", "size": 20, "heldout": 4}
    settings = [word for name, value in fields.items() for word in (f"--task.{name}", str(value))]
    settings += ["--task.options", "{max_terms = 2}", "--sampling.max_tokens", "4", "--verify.timeout_seconds", "60"]
    recipe = Path(__file__).parents[2] / "recipes" / "quickstart.toml"
    text = recipe.read_text().replace('name = "arithmetic"\ndigits = 2\n', "")
    (tmp_path / "recipe.toml").write_text(text)
    arguments = [str(tmp_path / "recipe.toml"), "--model.path", str(tiny_model_dir), *settings]
    assert main(["train", "--dry-run", *arguments]) == 0
    shown = tomllib.loads(capsys.readouterr().out)["task"]
    assert shown == shown | fields | {"options": {"max_terms": 2}}
    output = ["--output", str(tmp_path / "out")]
    assert main(["eval", str(tiny_model_dir), "--benchmarks", "reasoning_gym", *output, *settings]) == 0
    (score,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (score["problems"], score["unverified"], score["failed"]) == (4, 0, 0)
