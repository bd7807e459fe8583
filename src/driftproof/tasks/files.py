"""Prompts and answers from a user's file; a row that is not one is refused with its file and line."""

from pathlib import Path

from driftproof.errors import TaskError
from driftproof.tasks.answers import gsm8k_gold
from driftproof.tasks.conversations import VERL_ANSWER, Form
from driftproof.tasks.protocol import Task, generator, hold_out, needs_answer, numbered, own_rewards
from driftproof.tasks.rows import Row
from driftproof.tasks.sources import read_rows
from driftproof.types import Prompt


def jsonl(
    path: str | Path,
    *,
    prompt_field: str = "prompt",
    answer_field: str = "answer",
    system_field: str = "system",
    heldout: int | str | Path = 256,
    seed: int = 0,
    verifier: str | tuple[str, ...] = "exact",
) -> Task:
    """A task from rows like `{"prompt": "47+85=", "answer": "132"}`; the system message may be missing.

    The prompt is a text or chat messages, or the row is a conversation `messages` whose last message, the assistant's,
    is the answer where there is no other. A dot reaches into a field; rows of verl's have their answer in
    `reward_model.ground_truth`, which is found. `heldout` is a count of rows, drawn by `seed`, or another file that
    holds them; `verifier` is a name that `driftproof.verify.build` knows. A reward function of your own gets all
    columns, and needs no answer.
    """
    # Functions of the user's look at columns themselves; theirs is then the answer that they are tried with.
    others = (VERL_ANSWER, *(("solution", "ground_truth") if own_rewards(verifier) else ()))
    form = Form(
        prompt=(prompt_field, "messages"),
        answer=(answer_field, *others) if answer_field == "answer" else (answer_field,),
        system_field=system_field,
        needs_answer=needs_answer(verifier),
        keeps_columns=own_rewards(verifier),
    )
    example = f'{{"{prompt_field}": "47+85=", "{answer_field}": "132"}}'
    return task_of_file("jsonl", form, example, path, heldout, seed, verifier)


def gsm8k(
    path: str | Path,
    *,
    heldout: int | str | Path = 256,
    seed: int = 0,
    system: str = "",
    verifier: str | tuple[str, ...] = "math",
) -> Task:
    """Word problems in GSM8K's published format: a worked answer whose last line is `#### number`.

    The gold answer is that number without commas. `path` may be the published train.jsonl;
    `heldout` is a count of problems, drawn by `seed`, or another file, such as the published test.jsonl. The rows that
    verl makes of it are read as well.
    """
    form = Form(
        prompt=("question", "prompt", "messages"),
        answer=("answer", VERL_ANSWER),
        system=system,
        gold=_gold,
        keeps_columns=own_rewards(verifier),
    )
    example = '{"question": "...", "answer": "... #### 72"}'
    return task_of_file("gsm8k", form, example, path, heldout, seed, verifier)


def task_of_file(
    name: str,
    form: Form,
    example: str,
    path: str | Path,
    heldout: int | str | Path,
    seed: int,
    verifier: str | tuple[str, ...],
) -> Task:
    """A task of prompts in the rows of `path`, which look like `example`; held out are `heldout` of them, or those of
    the file `heldout`."""
    if isinstance(heldout, int):
        train, held = hold_out(_prompts(path, form, example), heldout, generator(seed), str(path))
    else:
        train, held = (numbered(_prompts(file, form, example)) for file in (path, heldout))
    return Task(name=name, train=train, heldout=held, verifier=verifier, wrap=form.wrap)


def _prompts(file: str | Path, form: Form, example: str) -> list[Prompt]:
    found = list(map(form.read, read_rows(file, example)))
    without = [prompt for prompt in found if not prompt.answer]
    if 0 < len(without) < len(found):
        raise TaskError(
            f"{without[0].source}: the row has no answer, but others have ({len(without):,} of {len(found):,} have "
            "none); give each one an answer, or none of them"
        )
    return found


def _gold(row: Row, answer: str) -> str:
    if "####" not in answer:
        if not row.given("answer") and row.given(VERL_ANSWER):
            return answer.strip()
        raise row.error('the field "answer" has no "####"')
    if (gold := gsm8k_gold(answer)) is None:
        raise row.error('the field "answer" has nothing after "####"')
    return gold
