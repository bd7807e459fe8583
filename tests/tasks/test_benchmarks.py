"""Mathematics tasks: from files by hand, and the six real benchmarks, each of which validates itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from driftproof.errors import TaskError
from driftproof.tasks import build
from driftproof.tasks.benchmarks import BENCHMARKS, EXAMPLES
from driftproof.verify import build as build_verifier
from tests.tasks.validate import validate
from tests.verify.items import item

SHARED = Path(__file__).parents[3] / "shared" / "data"
SIZES = {"math500": 500, "aime24": 30, "aime25": 30, "amc23": 40, "minerva": 272}
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks of ../shared/data")


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_benchmark_holds_out_all_and_boxes_are_read(tmp_path: Path) -> None:
    file = write(
        tmp_path / "m.jsonl",
        {"problem": "6 times 7?", "answer": "42"},
        {"problem": "half?", "solution": "so \\boxed{\\frac{1}{2}}"},
    )
    task = build("minerva", path=file)
    assert (task.name, len(task.train), task.verifier) == ("minerva", 0, "math")
    assert [prompt.answer for prompt in task.heldout] == ["42", "\\frac{1}{2}"]
    assert [prompt.index for prompt in task.heldout] == [0, 1]
    assert task.heldout[0].text.startswith("6 times 7?\nPlease reason step by step")


def test_shots_and_templates(tmp_path: Path) -> None:
    file = write(tmp_path / "m.jsonl", {"problem": "6 times 7?", "answer": "42"})
    [prompt] = build("math500", path=file, shots=2, template="Q: {problem}\nA:", system="Be brief.").heldout
    assert prompt.text.count("Q: ") == 3
    assert prompt.text.endswith("Q: 6 times 7?\nA:")
    assert EXAMPLES[0][1] in prompt.text
    assert prompt.system == "Be brief."


def test_worked_examples_are_right() -> None:
    verifier = build_verifier("math")
    golds = ["84", "-1/3", "x^2+3x-10", "1/36"]
    verdicts = verifier.score([item(solution, gold) for (_, solution), gold in zip(EXAMPLES, golds, strict=True)])
    verifier.close()
    assert [verdict.reward for verdict in verdicts] == [1.0] * 4


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_training_set_with_columns_of_its_own(tmp_path: Path, ending: str) -> None:
    rows = [{"prompt": f"{i} + 1?", "reward_model": {"ground_truth": str(i + 1)}} for i in range(20)]
    file = tmp_path / f"train.{ending}"
    if ending == "parquet":
        pa = pytest.importorskip("pyarrow", reason="pip install 'driftproof[lab]'")
        pq = pytest.importorskip("pyarrow.parquet", reason="pip install 'driftproof[lab]'")
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        write(file, *rows)
    fields = {"problem_field": "prompt", "answer_field": "reward_model.ground_truth", "heldout": 5}
    task = build("math", path=file, template="{problem}", **fields)
    assert (len(task.train), len(task.heldout)) == (15, 5)
    assert {prompt.answer for prompt in (*task.train, *task.heldout)} == {str(i + 1) for i in range(20)}
    assert all(int(prompt.text.split()[0]) + 1 == int(prompt.answer) for prompt in task.train)


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([{"problem": "x"}], {}, "b.jsonl:1: the field"),
        ([{"problem": "x", "answer": " "}], {}, 'the field "answer" is empty'),
        ([{"problem": "x", "answer": "\\boxed{1"}], {}, "no closed"),
        ([{"problem": "x", "answer": "1"}], {"shots": 5}, "shots is 5; it must be between 0 and 4"),
        ([{"problem": "x", "answer": "1"}], {"template": "Q"}, "it must say where the problem goes: {problem}"),
    ],
)
def test_bad_rows_and_fields_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError) as caught:
        build("amc23", path=write(tmp_path / "b.jsonl", *rows), **fields)
    assert message in str(caught.value)


def test_every_benchmark_is_a_task() -> None:
    assert set(SIZES) == set(BENCHMARKS)
    with pytest.raises(TaskError, match="No such file"):
        build("aime24", path="nowhere.jsonl")


@needs_data
@pytest.mark.parametrize("name", sorted(SIZES.keys() - {"math500", "minerva"}))
def test_real_benchmarks_validate_themselves(name: str) -> None:
    task = build(name, path=SHARED / name / "test.jsonl")
    assert len(task.heldout) == SIZES[name]
    found = validate(task, limit=25)
    assert found.answers == 25
    assert not found.mistakes


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "mistakes"), [("math500", 0), ("aime24", 0), ("amc23", 0), ("minerva", 1)])
def test_whole_benchmarks_validate_themselves(name: str, mistakes: int) -> None:
    found = validate(build(name, path=SHARED / name / "test.jsonl"), limit=None)
    assert found.answers == SIZES[name]
    assert len(found.mistakes) <= mistakes, found.mistakes
