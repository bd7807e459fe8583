"""Checks of a task before a run: what is too long for the model, and what a person should know about the data."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from driftproof.errors import TaskError
from driftproof.tasks.codec import Codec
from driftproof.tasks.protocol import RecordedGroup, Task, identity, numbered
from driftproof.types import Prompt

Problem = Callable[[Prompt, Sequence[str]], str]
"""The reason why a prompt, with its recorded responses, is too long, or ""."""

_MISSING = ("nan", "none", "null", "<na>")


def limit_characters(task: Task, most: int, *, drop: bool) -> Task:
    """The task, of which no prompt or recorded response has more than `most` characters: they would cost the tokenizer
    gigabytes. TaskError with file and line, unless the others are dropped."""

    def problem(prompt: Prompt, responses: Sequence[str]) -> str:
        asked = len(prompt.system) + sum(len(content) for _, content in prompt.turns) + len(prompt.text)
        longest = max((asked, *map(len, responses)))
        what = "prompt" if longest == asked else "longest response"
        return f"its {what} has {longest:,} characters, task.max_characters is {most:,}" if longest > most else ""

    return without_long(task, problem, "or raise task.max_characters", drop=drop)


def limit_tokens(task: Task, codec: Codec, context: int, max_tokens: int, *, note: str = "", drop: bool) -> Task:
    """The task, of which every prompt leaves room for a response, and every recorded response fits, in a model's
    context; TaskError with file and line, unless the others are dropped. Prompts that only served for a recorded
    response need no room for a fresh one. `note` says why the context is no longer."""

    def problem(prompt: Prompt, responses: Sequence[str]) -> str:
        tokens = len(codec.encode(prompt))
        if responses:
            tokens += max(len(codec.encode_response(text)) for text in responses)
            said = f"it and its longest response have {tokens:,} tokens, the model's context is {context:,}{note}"
            return said if tokens > context else ""
        room = context - max_tokens
        left = (
            f"with sampling.max_tokens = {max_tokens} the model's context of {context:,}{note} leaves {max(room, 0):,}"
        )
        return f"it has {tokens:,} tokens; {left}" if tokens > room else ""

    advice = "lower sampling.max_tokens, or use a model with a longer context"
    return without_long(task, problem, advice, drop=drop)


def without_long(task: Task, problem: Problem, advice: str, *, drop: bool) -> Task:
    """The task without the prompts that have a problem; TaskError that names the first of them where `drop` is not
    set, or where none is left to train on."""
    groups = {group.prompt.index: group.texts for group in task.recorded}
    heldout_groups = dict(enumerate(group.texts for group in task.recorded_heldout))
    long = {i: said for i, prompt in enumerate(task.train) if (said := problem(prompt, groups.get(i, ())))}
    long_heldout = {
        i: said for i, prompt in enumerate(task.heldout) if (said := problem(prompt, heldout_groups.get(i, ())))
    }
    if not (long or long_heldout):
        return task
    prompts = [*(task.train[i] for i in long), *(task.heldout[i] for i in long_heldout)]
    first, said = prompts[0], next(iter((long or long_heldout).values()))
    if not drop:
        raise TaskError(
            f"{_place(first, task)}: the prompt {first.text[:60]!r} is too long: {said} ({len(prompts):,} of "
            f"{len(task.train) + len(task.heldout):,} prompts are). Shorten or drop the row, leave out all such "
            f'rows by task.too_long = "drop", {advice}'
        )
    if len(long) == len(task.train) > 0:
        raise TaskError(f"task {task.name!r}: every prompt to train on is too long, like {_place(first, task)}: {said}")
    train = numbered(prompt for i, prompt in enumerate(task.train) if i not in long)
    heldout = numbered(prompt for i, prompt in enumerate(task.heldout) if i not in long_heldout)
    recorded = [group for group in task.recorded if group.prompt.index not in long]
    recorded_heldout = [group for i, group in enumerate(task.recorded_heldout) if i not in long_heldout]
    return replace(
        task,
        train=train,
        heldout=heldout,
        recorded=_with_prompts(recorded, train[len(train) - len(recorded) :]),
        recorded_heldout=_with_prompts(recorded_heldout, heldout),
        dropped=(*task.dropped, *(_place(prompt, task) for prompt in prompts)),
    )


def _place(prompt: Prompt, task: Task) -> str:
    return prompt.source or f"task {task.name!r}"


def _with_prompts(groups: Sequence[RecordedGroup], prompts: Sequence[Prompt]) -> tuple[RecordedGroup, ...]:
    """Groups of prompts that were numbered anew."""
    return tuple(replace(group, prompt=prompt) for group, prompt in zip(groups, prompts, strict=False))


def warnings(task: Task) -> list[str]:
    """Sentences on what is not wrong with a task, but should be known: a held-out prompt that is trained on, groups
    that teach nothing, prompts that were dropped."""
    said = []
    if task.dropped:
        said.append(f"{len(task.dropped):,} prompts are too long and left out, like {task.dropped[0]}")
    trained = {identity(prompt): prompt for prompt in task.train}
    both = [(prompt, trained[identity(prompt)]) for prompt in task.heldout if identity(prompt) in trained]
    if both:
        held, twin = both[0]
        places = f" (at {held.source} and {twin.source})" if held.source and twin.source else ""
        said.append(
            f"{len(both):,} of {len(task.heldout):,} held-out prompts are trained on as well, so that they measure "
            f"nothing new, like {held.text[:60]!r}{places}; drop the duplicates, or hold out other prompts"
        )
    prompts = [*task.train, *task.heldout]
    if missing := [prompt for prompt in prompts if prompt.answer.strip().lower() in _MISSING]:
        said.append(
            f"{len(missing):,} of {len(prompts):,} right answers are the text {missing[0].answer.strip()!r}, as tables "
            f"write what is missing, like {_place(missing[0], task)}; drop such rows, unless it is meant"
        )
    if single := [group for group in task.recorded if len(group.texts) == 1]:
        said.append(
            f"{len(single):,} of {len(task.recorded):,} recorded groups have one response: its advantage is 0, and "
            f"nothing can be learned from it, like {single[0].prompt.source or repr(single[0].prompt.text[:60])}; give "
            "several responses to one prompt"
        )
    blank = sum(reward != reward for group in task.recorded for reward in group.rewards)
    if blank:
        responses = sum(len(group.texts) for group in task.recorded)
        said.append(f"{blank:,} of {responses:,} recorded responses have no reward; they are trained on without effect")
    return said
