"""Data as people bring it: kinds of files, rows of other projects, answers that are numbers, what is too long or twice.

Each test bears the id of the report that it answers, and has inputs of its own beside the reported one.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from driftproof.tasks import build, read_recorded
from driftproof.tasks.checks import warnings
from driftproof.tasks.rows import written
from tests.cases.rows import ASK, LONG, ROWS, Rows, lines, pairs, read, refusal, save

EXPECTED = [(row["prompt"], row["answer"]) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", codecs.BOM_UTF8 + lines(ROWS)),
        ("bom.json", codecs.BOM_UTF8 + json.dumps(ROWS).encode()),
        ("array.jsonl", json.dumps(ROWS).encode()),
        ("array.json", b"\n " + json.dumps(ROWS, indent=2).encode() + b"\n"),
        ("packed.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)),
        ("packed.jsonl", gzip.compress(codecs.BOM_UTF8 + json.dumps(ROWS).encode(), mtime=0)),
        ("windows.jsonl", lines(ROWS).replace(b"\n", b"\r\n")),
        ("noend.jsonl", lines(ROWS).rstrip()),
        ("table.parquet", ROWS),
    ],
)
def test_f01_f09_files_are_read_for_what_they_hold(name: str, content: bytes | Rows, tmp_path: Path) -> None:
    assert pairs(read(save(tmp_path / name, content))) == EXPECTED


def test_f09_parquet_under_another_name_is_read(tmp_path: Path) -> None:
    save(tmp_path / "data.parquet", ROWS).rename(tmp_path / "data.bin")
    assert pairs(read(tmp_path / "data.bin")) == EXPECTED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lines(ROWS).decode().encode("utf-16"), "data: this is text in UTF-16; save it as UTF-8"),
        (lines(ROWS).decode().encode("utf-16-be"), "data: this is text in UTF-16, or no text at all"),
        (
            lines([{"prompt": "größer?", "answer": "1"}]).decode().encode("latin-1"),
            "data:1: no UTF-8 (byte 0xf6 at col",
        ),
        (
            lines([*ROWS, {"prompt": "3 €", "answer": "1"}]).decode().encode("cp1252"),
            "data:5: no UTF-8 (byte 0x80 at column 15): the file has another encoding, such as Latin-1 or Windows-1252",
        ),
        (b"PK\x03\x04rest", "data: this is a ZIP archive or an Excel workbook"),
        (b"\x28\xb5\x2f\xfdrest", "data: this is a Zstandard file; unpack it: unzstd"),
        (b"BZh91AY&SY", "data: this is a bzip2 file"),
        (b"\xfd7zXZ\x00rest", "data: this is an xz file"),
        (b"\x80\x04\x95pickled", "data: this is a pickle, which is never read"),
        (b"SQLite format 3\x00", "data: this is an SQLite database"),
        (b"ARROW1\x00\x00", "data: this is an Arrow file; save it as Parquet, or load its directory as hf:"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "data: this is a pointer of Git LFS in place of the file"),
        (b"<!DOCTYPE html><html>", "data: this is a page of HTML or XML"),
        (gzip.compress(gzip.compress(lines(ROWS), mtime=0), mtime=0), "data: this is a gzip file within gzip"),
        (gzip.compress(lines(ROWS), mtime=0)[:-12], "data: the gzip file is damaged or cut off"),
        (
            b"prompt,answer\n1+1=,2\n",
            "data:1: no JSON: Expecting value at column 1; it looks like a table of text (CSV)",
        ),
        (json.dumps(ROWS[0], indent=2).encode(), "data:1: no JSON: Expecting property name"),
        (json.dumps({"data": ROWS}).encode(), "data:1: the field \"prompt\" is missing (there are: ['data'])"),
        (b"[]", "data: the JSON array is empty"),
        (b'[{"prompt": "a", "answer": "b"}, 3]', "data:2: no JSON object: 3"),
        (b'[{"prompt": "a", "answer": "b"},\n{"prompt" "a"}]', "data:2: no JSON: Expecting ':' delimiter at column 11"),
        (b"", "data:1: the file is empty"),
        (gzip.compress(b"\n", mtime=0), "data:1: the file is empty"),
    ],
)
def test_f09_another_kind_of_file_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = save(tmp_path / "data", content)
    message = refusal(lambda: read(path))
    assert message.startswith(f"{tmp_path}/{said}"), message


def test_f09_json_over_several_lines_is_told_from_lines(tmp_path: Path) -> None:
    path = save(tmp_path / "data", json.dumps(ROWS[0], indent=2).encode())
    assert "it looks like JSON over several lines" in refusal(lambda: read(path))
    assert "hf:" in refusal(lambda: read(tmp_path))
    assert "no Parquet file: it begins with" in refusal(
        lambda: read(save(tmp_path / "a.jsonl", ROWS).rename(tmp_path / "a.parquet"))
    )


def test_lines_and_unpacked_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driftproof.tasks.sources.MOST_LINE_BYTES", 2**20)
    long = [*ROWS, {"prompt": "x" * 2**20, "answer": "1"}]
    assert "data.jsonl:5: the line has more than 1 MiB" in refusal(lambda: read(save(tmp_path / "data.jsonl", long)))
    monkeypatch.setattr("driftproof.tasks.sources.MOST_UNPACKED_BYTES", 60)
    packed = save(tmp_path / "data.gz", gzip.compress(lines(ROWS), mtime=0))
    assert "come out of the gzip file" in refusal(lambda: read(packed))
    monkeypatch.setattr("driftproof.tasks.sources.MOST_ARRAY_BYTES", 60)
    assert "a JSON array of more than" in refusal(lambda: read(save(tmp_path / "a.json", json.dumps(ROWS).encode())))


NUMBERS = [(132, "132"), (3.0, "3"), (-0.5, "-0.5"), (1e-5, "0.00001"), (1e22, "1e22"), (2.5e-30, "2.5e-30"),
           (-0.0, "0"), (2**70, str(2**70)), (10**400, "1" + "0" * 400), (1e16, "10000000000000000"),
           (0.1, "0.1")]  # fmt: skip


@pytest.mark.parametrize(("number", "text"), NUMBERS)
def test_f05_g18_numbers_are_written_as_a_person_would(number: float, text: str, tmp_path: Path) -> None:
    assert written(number) == text
    path = save(tmp_path / "data.jsonl", [{"prompt": "p", "problem": "p", "question": "p", "answer": number}])
    for name in ("jsonl", "math", "gsm8k"):
        assert read(path, name)[0].answer == text
    trace = [{"problem": "p", "answer": number, "responses": [{"text": "1", "correct": True}]}]
    assert read_recorded(save(tmp_path / "trace.jsonl", trace))[0].prompt.answer == text


def test_f05_integers_that_a_table_made_floats(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "answer": 2.0}, {"prompt": "1/2=", "answer": 0.5}]
    assert [prompt.answer for prompt in read(save(tmp_path / "data.parquet", rows))] == ["2", "0.5"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("answer", [math.nan, math.inf])
def test_f21_no_number_is_refused_with_its_row(suffix: str, answer: float, tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "problem": "1+1=", "answer": 2.0}, {"prompt": "?", "problem": "?", "answer": answer}]
    path = save(tmp_path / f"data.{suffix}", rows)
    for name in ("jsonl", "math"):
        said = refusal(partial(read, path, name))
        assert f'data.{suffix}:2: the field "answer" is {answer}, which is no number' in said


def test_f21_the_text_of_what_is_missing_is_told(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "a", "answer": "nan"}, {"prompt": "b", "answer": "None"}]
    path = save(tmp_path / "data.jsonl", rows)
    (warning,) = warnings(build("jsonl", path=str(path), heldout=str(save(tmp_path / "held.jsonl", [LONG]))))
    assert f"2 of 7 right answers are the text 'nan', as tables write what is missing, like {path}:5" in warning


VERL = {"data_source": "x", "prompt": ASK, "reward_model": {"style": "rule", "ground_truth": "1"},
        "ability": "math", "extra_info": {"index": 0, "split": "train"}}  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ["jsonl", "math", "gsm8k"])
def test_f14b_rows_of_verl(suffix: str, name: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"data.{suffix}", [VERL, VERL | {"prompt": [{"role": "system", "content": "Add."}, *ASK]}])
    fields = {"template": "{problem}"} if name == "math" else {}
    first, second = read(path, name, **fields)
    assert (first.text, first.answer, first.system) == ("0+1=", "1", "")
    assert (second.text, second.answer, second.system) == ("0+1=", "1", "Add.")


CHAT = [{"role": "system", "content": "Add."}, *ASK, {"role": "assistant", "content": "1"}]


@pytest.mark.parametrize(
    ("row", "fields", "answer"),
    [
        ({"prompt": ASK, "answer": "1"}, {}, "1"),  # F14
        ({"prompt": ASK, "answer": 1}, {}, "1"),
        ({"prompt": ASK, "answer": ["1"]}, {}, "1"),
        ({"prompt": ASK, "answer": [1.0]}, {}, "1"),
        ({"prompt": ASK, "solution": "1"}, {"answer_field": "solution"}, "1"),
        ({"prompt": ASK, "ground_truth": 1.0, "level": 3}, {"answer_field": "ground_truth"}, "1"),
        ({"prompt": ASK, "completion": CHAT[-1:]}, {"answer_field": "completion"}, "1"),
        ({"prompt": "0+1=", "completion": " 1"}, {"answer_field": "completion"}, "1"),
        ({"prompt": "0+1=", "extra": {"info": {"gold": "1"}}}, {"answer_field": "extra.info.gold"}, "1"),
        ({"prompt": "0+1=", "a.b": "1", "a": {"b": "2"}}, {"answer_field": "a.b"}, "1"),
        ({"messages": ASK, "answer": "1"}, {}, "1"),
        ({"messages": CHAT}, {}, "1"),
        ({"messages": CHAT, "answer": "one"}, {}, "one"),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "0+"}, {"type": "text", "text": "1="}]}],
          "answer": "1"}, {}, "1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["jsonl", "math"])
def test_f14_rows_of_trl_and_openai(
    name: str, row: dict[str, Any], fields: dict[str, Any], answer: str, tmp_path: Path
) -> None:
    fields = fields | ({"template": "{problem}"} if name == "math" else {})
    (prompt,) = read(save(tmp_path / "data.jsonl", [row]), name, **fields)
    assert (prompt.text, prompt.answer.strip(), prompt.turns) == ("0+1=", answer, ())
    assert prompt.source == f"{tmp_path / 'data.jsonl'}:1"


def test_f14_worked_examples_as_turns(tmp_path: Path) -> None:
    row = {"prompt": [*CHAT, {"role": "user", "content": "2+2="}], "answer": "4"}
    (prompt,) = read(save(tmp_path / "data.jsonl", [row]))
    assert (prompt.system, prompt.turns, prompt.text) == ("Add.", (("user", "0+1="), ("assistant", "1")), "2+2=")
    trace = [{"messages": [*row["prompt"], {"role": "assistant", "content": "4"}], "reward": 1.0}]
    (group,) = read_recorded(save(tmp_path / "trace.jsonl", trace))
    assert (group.prompt.turns, group.prompt.text, group.texts) == (prompt.turns, "2+2=", ("4",))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"prompt": "1+1=", "solution": "2"},
            "the field \"answer\" is missing (there are: ['prompt', 'solution']); to take it from there: "
            'task.answer_field = "solution"',
        ),
        (
            {"prompt": [*CHAT[:1], *ASK], "answer": "1", "system": "a"},
            'there is one system message in "prompt" and another in "system"',
        ),
        (
            {"prompt": ASK, "answer": "1", "tools": [{"name": "add"}]},
            'the row has "tools", which a prompt or a response cannot express',
        ),
        ({"prompt": CHAT, "answer": "1"}, "a prompt is messages of the user and the assistant in turn"),
        ({"prompt": [{"role": "user", "content": [{"type": "image_url"}]}], "answer": "1"}, "has a part 'image_url'"),
        ({"prompt": [{"role": "tool", "content": "3"}], "answer": "1"}, "has the roles ['tool']"),
        ({"prompt": ASK, "answer": ["1", "2"]}, "the field \"answer\" must be a text, not ['1', '2']"),
        ({"messages": ASK}, 'the field "answer" is missing'),
    ],
)
def test_f14_what_a_prompt_cannot_express_is_refused(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = save(tmp_path / "data.jsonl", [*ROWS, row])
    message = refusal(lambda: read(path))
    assert message.startswith(f"{path}:5: ")
    assert problem in message


def test_columns_reach_reward_functions_and_only_them(tmp_path: Path) -> None:
    row = VERL | {"solution": "1", "score": math.nan, "tests": [{"input": 1}]}
    path = save(tmp_path / "data.jsonl", [row])
    assert read(path)[0].columns == {}
    (prompt,) = read(path, verifier="rewards:score")
    assert prompt.columns == {name: value for name, value in row.items() if name != "prompt"} | {"score": None}
    assert read(path, "math", verifier="rewards:score")[0].columns == prompt.columns
    assert build("math500", path=str(path), verifier=["math", "rewards:score"]).heldout[0].columns == prompt.columns
    # A reward of the length alone needs no answer; one of other things gets them as they are.
    bare = save(tmp_path / "bare.jsonl", [{"prompt": "Write.", "n": 3}] * 2)
    assert [prompt.answer for prompt in read(bare, verifier="rewards:score")] == ["", ""]
    trl = save(tmp_path / "trl.jsonl", [{"prompt": "1+1=", "solution": "2", "level": 3}])
    assert [prompt.answer for prompt in read(trl, verifier="rewards:score")] == ["2"]
    lists = save(tmp_path / "lists.jsonl", [{"prompt": "Write.", "answer": ["a", 1]}])
    assert [prompt.answer for prompt in read(lists, verifier="rewards:score")] == ['["a", 1]']
    some = save(tmp_path / "some.jsonl", [*ROWS, {"prompt": "?", "answer": None}])
    assert f"{some}:5: the row has no answer, but others have (1 of 5" in refusal(
        lambda: read(some, verifier="rewards:score")
    )
    long = save(tmp_path / "long.jsonl", [{"prompt": "Write.", "text": "x" * 2**21}])
    assert "long.jsonl:1: the columns of a prompt have" in refusal(lambda: read(long, verifier="rewards:score"))


def test_columns_of_a_table_are_json_or_left_out(tmp_path: Path) -> None:
    import datetime
    import decimal

    day = datetime.date(2024, 2, 29)
    row = {"prompt": "1+1=", "answer": "2", "image": b"png", "day": day, "price": decimal.Decimal("1.50"), "no": None}
    (prompt,) = read(save(tmp_path / "data.parquet", [row]), verifier="rewards:score")
    assert prompt.columns == {"answer": "2", "day": "2024-02-29", "price": 1.5, "no": None}


def test_golds_as_published(tmp_path: Path) -> None:
    answers = ("so 72\n#### 72 clips\nDone.", "#### 1,234", "#### -3", "#### $18", "#### 3.5 miles", "#### yes")
    rows = [{"question": "?", "answer": answer} for answer in answers]
    golds = [prompt.answer for prompt in read(save(tmp_path / "gsm8k.jsonl", rows), "gsm8k")]
    assert golds == ["72", "1234", "-3", "18", "3.5", "yes"]
    solutions = ("so $\\fbox{1}$.", "so $\\boxed{2}$", "\\boxed 3", "\\boxed{\\text{(A)}}")
    rows = [{"problem": "?", "solution": solution} for solution in solutions]
    golds = [prompt.answer for prompt in read(save(tmp_path / "math.jsonl", rows), "math", answer_field="solution")]
    assert golds == ["1", "2", "3", "\\text{(A)}"]
    for answer in ("\\text{}", "so \\boxed{\\text{ }}", "{}"):
        path = save(tmp_path / "blank.jsonl", [{"problem": "?", "answer": answer}])
        assert refusal(partial(read, path, "math")).startswith(f"{path}:1: the ")
