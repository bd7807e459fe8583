"""The procedural puzzles of reasoning-gym by name, scored by the dataset that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from driftproof.tasks.protocol import Task, TaskError
from driftproof.tasks.split import generator, hold_out, numbered
from driftproof.types import Prompt

_TEMPLATE = "{problem}\nGive your final answer inside <answer> and </answer>."


def reasoning_gym(
    dataset: str,
    *,
    options: Mapping[str, Any] | None = None,
    size: int = 2_000,
    heldout: int = 200,
    seed: int = 0,
    template: str = _TEMPLATE,
    system: str = "",
) -> Task:
    """`size` puzzles of the dataset called `dataset`, of which `heldout` are never trained on.

    `options` are the dataset's own, like `{"min_animals": 2}`; `seed` makes the puzzles and the split. The rewards are
    those of the dataset's scorer, which may give part of the credit.

    Raises:
        TaskError: reasoning-gym is missing, an unknown dataset or option, or a count out of range.
    """
    try:
        from reasoning_gym import create_dataset
    except ImportError as error:
        raise TaskError(
            f"reasoning-gym is missing ({error}); install it: pip install 'driftproof[reasoning-gym]'"
        ) from error
    random = generator(seed)
    chosen = {**(options or {}), "size": size, "seed": seed}
    try:
        entries = list(enumerate(create_dataset(dataset, **chosen)))
    except (TypeError, ValueError, AssertionError) as error:
        raise TaskError(f"reasoning_gym: dataset {dataset!r} with options {chosen} cannot be made: {error}") from error
    prompts = [
        Prompt(
            index=0,
            text=template.replace("{problem}", entry["question"]),
            answer=json.dumps({"dataset": dataset, "options": chosen, "index": index, "answer": entry["answer"]}),
            system=system,
        )
        for index, entry in entries
    ]
    train, held = hold_out(prompts, heldout, random, f"reasoning_gym {dataset}")
    return Task(
        name="reasoning_gym",
        train=numbered(train),
        heldout=numbered(held),
        verifier="driftproof.verify.reasoning_gym:score",
        gold=_gold,
    )


def _gold(prompt: Prompt) -> str:
    return str(json.loads(prompt.answer)["answer"])
