"""Prompts and answers from a user's file; a row that is not one is refused with its file and line."""

from pathlib import Path

from driftproof.tasks.protocol import Task, task_of_file
from driftproof.tasks.rows import Row, read_rows
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
    """A task from rows like `{"prompt": "47+85=", "answer": "132"}`; the system message may be missing.

    `heldout` is a count of rows, drawn by `seed`, or another file that holds them; `verifier` is a name that
    `driftproof.verify.build` knows.
    """
    example = f'{{"{prompt_field}": "47+85=", "{answer_field}": "132"}}'

    def prompt(row: Row) -> Prompt:
        system = row.optional_text(system_field)
        return Prompt(index=0, text=row.text(prompt_field), answer=row.text(answer_field), system=system)

    return task_of_file("jsonl", lambda file: map(prompt, read_rows(file, example)), path, heldout, seed, verifier)


def gsm8k(path: str | Path, *, heldout: int | str | Path = 256, seed: int = 0, system: str = "") -> Task:
    """Word problems in GSM8K's published format: a worked answer whose last line is `#### number`.

    The gold answer is that number without commas, the verifier "math". `path` may be the published train.jsonl;
    `heldout` is a count of problems, drawn by `seed`, or another file, such as the published test.jsonl.
    """
    example = '{"question": "...", "answer": "... #### 72"}'

    def prompt(row: Row) -> Prompt:
        return Prompt(index=0, text=row.text("question"), answer=_after_hashes(row), system=system)

    return task_of_file("gsm8k", lambda file: map(prompt, read_rows(file, example)), path, heldout, seed, "math")


def _after_hashes(row: Row) -> str:
    _, marker, gold = row.text("answer").rpartition("####")
    if not marker:
        raise row.error('the field "answer" has no "####"')
    if not (gold := gold.replace(",", "").strip()):
        raise row.error('the field "answer" has nothing after "####"')
    return gold
