"""GSM8K in its published format: a worked answer whose last line is `#### number`."""

from __future__ import annotations

from pathlib import Path

from driftproof.tasks.protocol import Task
from driftproof.tasks.rows import Row, read_rows
from driftproof.tasks.split import split_files
from driftproof.types import Prompt

_EXAMPLE = '{"question": "...", "answer": "... #### 72"}'


def gsm8k(path: str | Path, *, heldout: int | str | Path = 256, seed: int = 0, system: str = "") -> Task:
    """Word problems; the gold answer is what follows the last `####`, without commas. The verifier is "math".

    Args:
        path: the file, for example the published train.jsonl.
        heldout: how many problems, drawn by `seed`, are held out, or another file (the published test.jsonl).
        seed: of the shuffle.
        system: system message of every prompt.

    Raises:
        TaskError: a file that cannot be read, a bad row, or a `heldout` that leaves nothing to train on.
    """

    def read(file: str | Path) -> list[Prompt]:
        return [
            Prompt(index=0, text=row.text("question"), answer=_gold(row), system=system)
            for row in read_rows(file, _EXAMPLE)
        ]

    train, held = split_files(read, path, heldout, seed)
    return Task(name="gsm8k", train=train, heldout=held, verifier="math")


def _gold(row: Row) -> str:
    _, marker, gold = row.text("answer").rpartition("####")
    if not marker:
        raise row.error('the field "answer" has no "####"')
    if not (gold := gold.replace(",", "").strip()):
        raise row.error('the field "answer" has nothing after "####"')
    return gold
