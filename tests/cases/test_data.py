"""Data as people bring it: kinds of files, rows of other projects, answers that are numbers, what is too long or twice.

Each test bears the id of the report that it answers, and has inputs of its own beside the reported one.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from driftproof.engines.recorded import RecordedEngine
from driftproof.errors import TaskError
from driftproof.evaluation.heldout import recorded_groups
from driftproof.tasks import Task, build, read_recorded, with_recorded
from driftproof.tasks.checks import limit_characters, limit_tokens, warnings
from driftproof.tasks.codec import Codec
from driftproof.tasks.rows import written
from driftproof.tiny.model import make_tiny_model
from driftproof.types import Prompt
from tests.runtime.runs import Ended, train, write_recipe

Rows = list[dict[str, Any]]
HELD = ("solution", "ground_truth", "completion", "a.b", "extra.info.gold")
"""Fields in which a test may look for the answer of the one row that is held out."""
ROWS: Rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(4)]
ASK = [{"role": "user", "content": "0+1="}]


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def save(path: Path, content: bytes | Rows) -> Path:
    if path.suffix == ".parquet":
        assert not isinstance(content, bytes)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else lines(content))
    return path


def read(path: Path, name: str = "jsonl", **fields: Any) -> list[Prompt]:
    """The prompts of a file, in its order."""
    nothing = save(path.parent / "heldout.jsonl", [{"prompt": "h", "answer": "#### 1"} | dict.fromkeys(HELD, "#### 1")])
    return list(build(name, path=str(path), heldout=str(nothing), **fields).train)


def pairs(prompts: list[Prompt]) -> list[tuple[str, str]]:
    return [(prompt.text, prompt.answer) for prompt in prompts]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(TaskError) as refused:
        call()
    return str(refused.value)


EXPECTED = [(row["prompt"], row["answer"]) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", codecs.BOM_UTF8 + lines(ROWS)),
        ("bom.json", codecs.BOM_UTF8 + json.dumps(ROWS).encode()),
        ("array.jsonl", json.dumps(ROWS).encode()),
        ("array.json", b"\n " + json.dumps(ROWS, indent=2).encode() + b"\n"),
        ("packed.jsonl.gz", gzip.compress(lines(ROWS))),
        ("packed.jsonl", gzip.compress(codecs.BOM_UTF8 + json.dumps(ROWS).encode())),
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
        (gzip.compress(gzip.compress(lines(ROWS))), "data: this is a gzip file within gzip"),
        (gzip.compress(lines(ROWS))[:-12], "data: the gzip file is damaged or cut off"),
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
        (gzip.compress(b"\n"), "data:1: the file is empty"),
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
    packed = save(tmp_path / "data.gz", gzip.compress(lines(ROWS)))
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
    # A reward of the length alone needs no answer; one of other things gets them as they are.
    bare = save(tmp_path / "bare.jsonl", [{"prompt": "Write.", "n": 3}] * 2)
    assert [prompt.answer for prompt in read(bare, verifier="rewards:score")] == ["", ""]
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


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-bytes"
    make_tiny_model(path, tokenizer="bytes", train=False)
    return path


def trained(tmp_path: Path, model: Path, *settings: object) -> Ended:
    return train(write_recipe(tmp_path, model), "--dry-run", *settings)


LONG = {"prompt": "1" * 40_000, "answer": "1"}


def test_f17_a_prompt_that_is_too_long_is_named_by_its_row_or_dropped(byte_model: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "long.jsonl", [*ROWS, ROWS[0] | {"prompt": "9+9="}, ROWS[0] | {"prompt": "8+8="}, LONG])
    settings = ("--task.path", path, "--task.heldout", 1, "--task.verifier", "exact")
    refused = trained(tmp_path, byte_model, *settings)
    assert refused.code == 2
    assert f"{path}:7: the prompt '1111" in refused.stderr
    assert "is too long: it has 40,000 tokens" in refused.stderr
    assert 'task.too_long = "drop"' in refused.stderr
    dropped = trained(tmp_path, byte_model, *settings, "--task.too_long", "drop")
    assert dropped.code == 0, dropped.stderr
    assert f"warning: 1 prompts are too long and left out, like {path}:7" in dropped.stderr


def test_f17_what_is_left_is_numbered_anew_and_the_same_everywhere(byte_model: Path, tmp_path: Path) -> None:
    rows = [LONG | {"prompt": f"{i}" * 300} if i % 3 == 0 else ROWS[0] | {"prompt": f"{i}+0="} for i in range(12)]
    task = build("jsonl", path=str(save(tmp_path / "data.jsonl", rows)), heldout=4)
    codec = Codec(byte_model)
    left = limit_tokens(task, codec, 200, 16, drop=True)
    assert left == limit_tokens(task, Codec(byte_model), 200, 16, drop=True)
    assert [prompt.index for prompt in left.train] == list(range(len(left.train)))
    assert len(left.train) + len(left.heldout) == 8
    assert sorted(left.dropped) == sorted(f"{tmp_path / 'data.jsonl'}:{i + 1}" for i in (0, 3, 6, 9))
    assert "every prompt to train on is too long" in refusal(lambda: limit_tokens(task, codec, 4, 1, drop=True))


def test_f17_recorded_groups_are_dropped_with_their_prompts(byte_model: Path, tmp_path: Path) -> None:
    rows = []
    for i in range(10):
        text = "1" * (400 if i in (1, 4) else 2)
        responses = [{"text": text, "correct": True}, {"text": "2", "correct": False}]
        rows.append({"problem": f"{i}?", "answer": "1", "responses": responses})
    path = save(tmp_path / "trace.jsonl", rows)
    codec = Codec(byte_model)
    for task in (build("recorded", path=str(path)), with_recorded(build("arithmetic", digits=1, heldout=5), path)):
        left = limit_tokens(task, codec, 100, 4, drop=True)
        assert len(left.dropped) == 2
        assert [group.prompt for group in left.recorded] == list(left.train[len(left.train) - len(left.recorded) :])
        if left.recorded_heldout:
            assert [group.prompt for group in left.recorded_heldout] == list(left.heldout)
        texts = [text for group in (*left.recorded, *left.recorded_heldout) for text in group.texts]
        assert len(texts) == 16
        assert max(map(len, texts)) == 2
        said = refusal(partial(limit_tokens, task, codec, 100, 4, drop=False))
        assert "it and its longest response have" in said
        assert f"{path}:" in said


def test_f15_a_prompt_of_megabytes_is_refused_before_it_is_tokenized(
    byte_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "long.jsonl", [*ROWS, {"prompt": "1" * 3_000_000, "answer": "1"}])
    asked: list[int] = []
    encode = Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda codec, prompt: asked.append(len(prompt.text)) or encode(codec, prompt))
    settings = ("--task.path", path, "--task.heldout", 0, "--task.verifier", "exact")
    refused = trained(tmp_path, byte_model, *settings)
    assert f"{path}:5: the prompt" in refused.stderr
    assert "its prompt has 3,000,000 characters, task.max_characters is 1,000,000" in refused.stderr
    assert asked == []
    assert trained(tmp_path, byte_model, *settings, "--task.too_long", "drop").code == 0
    assert max(asked) < 10
    trace = [{"problem": "1?", "answer": "1", "responses": [{"text": "1" * 40, "correct": True}]}] * 2
    task = build("recorded", path=str(save(tmp_path / "trace.jsonl", trace)))
    assert "its longest response has 40 characters" in refusal(lambda: limit_characters(task, 39, drop=False))
    assert limit_characters(task, 40, drop=False) is task


def test_f18_duplicates_over_the_split_are_counted_and_told(byte_model: Path, tmp_path: Path) -> None:
    same = save(tmp_path / "same.jsonl", [ROWS[0]] * 8)
    (warning,) = warnings(build("jsonl", path=str(same), heldout=1))
    assert "1 of 1 held-out prompts are trained on as well" in warning
    assert f"{same}:" in warning
    (warning,) = warnings(build("jsonl", path=str(same), heldout=str(save(tmp_path / "other.jsonl", ROWS))))
    assert "1 of 4 held-out prompts are trained on as well" in warning
    trace = [{"problem": "1?", "answer": "1", "responses": [{"text": t, "correct": t == "1"} for t in "12"]}] * 5
    (warning,) = warnings(build("recorded", path=str(save(tmp_path / "trace.jsonl", trace))))
    assert "1 of 1 held-out prompts are trained on as well" in warning
    assert warnings(build("jsonl", path=str(save(tmp_path / "good.jsonl", ROWS)), heldout=1)) == []
    told = trained(tmp_path, byte_model, "--task.path", same, "--task.heldout", 2, "--task.verifier", "exact")
    assert told.code == 0
    assert "warning: 2 of 2 held-out prompts are trained on as well" in told.stderr


def test_f18_a_trace_with_a_held_out_question_is_refused_whatever_the_template(tmp_path: Path) -> None:
    held = save(tmp_path / "held.jsonl", [{"problem": "6 times 7?", "answer": "42"}])
    task = build(
        "math", path=str(save(tmp_path / "train.jsonl", [{"problem": "1+1?", "answer": "2"}])), heldout=str(held)
    )
    responses = [{"text": "42", "correct": True}, {"text": "41", "correct": False}]
    for text in ("6 times 7?", task.heldout[0].text):
        trace = save(tmp_path / "trace.jsonl", [{"problem": text, "answer": "42", "responses": responses}])
        assert "1 of 1 prompts are held out by task 'math'" in refusal(partial(with_recorded, task, trace))
    assert len(with_recorded(build("math", path=str(held), heldout=0), trace).train) == 2


def test_g26_groups_of_one_response_are_counted_and_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+1=", "completion": "2", "reward": 1.0} for i in range(5)]
    task: Task = build("recorded", path=str(save(tmp_path / "trace.jsonl", rows)), heldout_fraction=0.0)
    (warning,) = warnings(task)
    assert "5 of 5 recorded groups have one response: its advantage is 0, and nothing can be learned from it" in warning
    task = build("recorded", path=str(save(tmp_path / "b.jsonl", rows + rows[:2])), heldout_fraction=0.0)
    assert "3 of 5 recorded groups have one response" in warnings(task)[0]


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "1+1=", "completions": ["2", "3", "4"], "rewards": [1.0, None, 0.0]}],
        [{"prompt": "1+1=", "completion": c, "reward": r} for c, r in (("2", 1.0), ("3", None), ("4", 0.0))],
        [{"prompt": "1+1=", "choices": [{"text": t} for t in "234"], "rewards": [1, None, 0]}],
        [{"problem": "1+1=", "answer": "2", "responses": [
            {"text": "2", "correct": True}, {"text": "3", "correct": None}, {"text": "4", "reward": 0}]}],
    ],
)  # fmt: skip
def test_g06_a_null_among_the_rewards_is_no_reward(rows: Rows, byte_model: Path, tmp_path: Path) -> None:
    task = build("recorded", path=str(save(tmp_path / "trace.jsonl", rows)), heldout_fraction=0.0)
    np.testing.assert_equal(task.recorded[0].rewards, (1.0, math.nan, 0.0))
    assert task.recorded[0].mixed
    (group,) = recorded_groups(task.recorded, Codec(byte_model))
    np.testing.assert_equal(group.rewards, [1.0, math.nan, 0.0])
    assert group.problems == ("", "the trace has no reward for it", "")
    assert warnings(task) == ["1 of 3 recorded responses have no reward; they are trained on without effect"]
    assert isinstance(RecordedEngine(task.recorded, lambda text: [1]), RecordedEngine)


def test_g06_a_trace_without_any_reward_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "trace.jsonl", [{"prompt": "1+1=", "completions": ["2", "3"], "rewards": [None, None]}])
    assert refusal(lambda: read_recorded(path)).startswith(f"{path}: no response has a reward")
