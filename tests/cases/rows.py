"""Files of rows for the tests of data, and what reading them gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from driftproof.errors import TaskError
from driftproof.tasks import build
from driftproof.types import Prompt

Rows = list[dict[str, Any]]
HELD = ("solution", "ground_truth", "completion", "a.b", "extra.info.gold")
"""Fields in which a test may look for the answer of the one row that is held out."""
ROWS: Rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(4)]
LONG = {"prompt": "1" * 40_000, "answer": "1"}
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
