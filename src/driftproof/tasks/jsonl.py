"""Prompts and answers from a file of JSON lines; a row that is not one is refused with its file and line."""

from __future__ import annotations

from pathlib import Path

from driftproof.tasks.protocol import Task
from driftproof.tasks.rows import read_rows
from driftproof.tasks.split import split_files
from driftproof.types import Prompt


def jsonl(
    path: str | Path,
    *,
    prompt_field: str = "prompt",
    answer_field: str = "answer",
    system_field: str = "system",
    heldout: int | str | Path = 256,
    seed: int = 0,
    verifier: str = "exact",
) -> Task:
    """A task from rows like `{"prompt": "47+85=", "answer": "132"}`.

    Args:
        path: the file, UTF-8.
        prompt_field: name of the field with the prompt.
        answer_field: name of the field with the answer the verifier compares with.
        system_field: name of the field with a system message; rows may be without it.
        heldout: how many rows, drawn by `seed`, are held out, or another file that holds them.
        seed: of the shuffle.
        verifier: a name `driftproof.verify.build` knows.

    Raises:
        TaskError: a file that cannot be read, a bad row, or a `heldout` that leaves nothing to train on.
    """

    def read(file: str | Path) -> list[Prompt]:
        example = f'{{"{prompt_field}": "47+85=", "{answer_field}": "132"}}'
        return [
            Prompt(
                index=0,
                text=row.text(prompt_field),
                answer=row.text(answer_field),
                system=row.optional_text(system_field),
            )
            for row in read_rows(file, example)
        ]

    train, held = split_files(read, path, heldout, seed)
    return Task(name="jsonl", train=train, heldout=held, verifier=verifier)
