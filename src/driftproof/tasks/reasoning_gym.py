"""The procedural puzzles of reasoning-gym by name, scored by the dataset that made them."""

import json
import os
from collections.abc import Mapping
from typing import Any

from driftproof.errors import TaskError, unknown_name
from driftproof.tasks.protocol import Task, generator, hold_out
from driftproof.types import Prompt

_TEMPLATE = "{problem}\nGive your final answer inside <answer> and </answer>."

_UNSTEADY = ("codeio", "isomorphic_strings", "knight_swap", "list_functions", "polynomial_multiplication",
             "ransom_note", "word_ladder")  # fmt: skip
"""Datasets that go through sets (seen in 0.1.25): learner, workers and verifiers would not have the same puzzles."""


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
    """
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise TaskError(
            f"reasoning-gym is missing ({error}); install it: pip install 'driftproof[reasoning-gym]'"
        ) from error
    if dataset not in DATASETS:
        raise TaskError(unknown_name("reasoning_gym dataset", dataset, DATASETS))
    if dataset in _UNSTEADY and os.environ.get("PYTHONHASHSEED", "") in ("", "random"):
        raise TaskError(
            f"reasoning_gym: dataset {dataset!r} makes other puzzles in every process, unless all of them have one "
            "hash seed; set PYTHONHASHSEED=0 in the environment of the command"
        )
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
        name="reasoning_gym", train=train, heldout=held, verifier="driftproof.verify.reasoning_gym:score", gold=_gold
    )


def _gold(prompt: Prompt) -> str:
    return str(json.loads(prompt.answer)["answer"])
