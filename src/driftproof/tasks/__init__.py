"""Tasks: prompts to learn on, prompts held out, and the name of the verifier.

```python
from driftproof.tasks import build
task = build("arithmetic", digits=2)
task.train[0].text, task.train[0].answer
```

A task of your own is a function that returns a `Task`, named `package.module:function`.
"""

import importlib
import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from driftproof.errors import TaskError, unknown_name
from driftproof.tasks.benchmarks import BENCHMARKS, benchmark, math
from driftproof.tasks.files import gsm8k, jsonl
from driftproof.tasks.protocol import RecordedGroup, Task, numbered
from driftproof.tasks.reasoning_gym import reasoning_gym
from driftproof.tasks.recorded import read_recorded, recorded, with_recorded
from driftproof.tasks.sums import arithmetic, running_sums
from driftproof.types import Prompt

TASKS: dict[str, Callable[..., Task]] = {
    "arithmetic": arithmetic,
    "gsm8k": gsm8k,
    "jsonl": jsonl,
    "math": math,
    "reasoning_gym": reasoning_gym,
    "recorded": recorded,
    "running_sums": running_sums,
    **{name: partial(benchmark, name) for name in BENCHMARKS},
}

__all__ = ["TASKS", "RecordedGroup", "Task", "TaskError", "build", "read_recorded", "with_recorded"]


def build(name: str, **fields: Any) -> Task:
    """The task called `name`, or your own: `package.module:function`; made with `fields` as its arguments.

    Every task takes `verifier`, a name that `driftproof.verify.build` knows or a list of them, in place of its own, and
    `weights`, a number for each of a list. TaskError for an unknown name or field, listing the valid ones; a missing
    field; a value of the wrong type or out of range; data that cannot be read.
    """
    make = TASKS.get(name) or _own(name)
    parameters = inspect.signature(make).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    rewards = _checked_rewards(name, fields.pop("verifier", None), fields.pop("weights", ()))
    for field in fields:
        if field not in parameters and not takes_all:
            valid = sorted({*parameters, "verifier", "weights"})
            raise TaskError(f"task {name!r}: {unknown_name('field', field, valid)}")
    for field, parameter in parameters.items():
        if parameter.default is parameter.empty and field not in fields and parameter.kind is not parameter.VAR_KEYWORD:
            raise TaskError(f"task {name!r} needs the field {field!r}")
    if "verifier" in rewards and "verifier" in parameters:
        # Which columns its prompts keep depends on it.
        fields["verifier"] = rewards["verifier"]
    task = _made(name, make, fields)
    return replace(task if name in TASKS else _checked(name, task), **rewards)


def _checked(name: str, task: Any) -> Task:
    """The task that a function of the user's returned, its prompts numbered; TaskError for anything else."""
    if not isinstance(task, Task):
        raise TaskError(f"task {name!r} returned a {type(task).__name__}, not a driftproof.tasks.Task")
    parts = (task.train, task.heldout)
    if wrong := [prompt for prompts in parts for prompt in prompts if not isinstance(prompt, Prompt)]:
        raise TaskError(f"task {name!r}: a prompt is {wrong[0]!r:.200}, not a driftproof.types.Prompt")
    train, heldout = map(numbered, parts)
    return replace(task, train=train, heldout=heldout)


def _made(name: str, make: Callable[..., Any], fields: dict[str, Any]) -> Any:
    if name not in TASKS:
        try:
            return make(**fields)
        except TaskError:
            raise
        except Exception as error:
            # Code of the user's: where it failed is all that helps.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where, what = f"{frame.filename}:{frame.lineno}", f"{type(error).__name__}: {error}"
            raise TaskError(f"task {name!r} failed at {where}: {what}") from error
    from pydantic import ValidationError, validate_call

    try:
        return validate_call(make)(**fields)
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, wrong["loc"][:1]))
        raise TaskError(f"task {name!r}: {field} is {wrong['input']!r}: {wrong['msg']}") from error


def _own(name: str) -> Callable[..., Any]:
    """The function at `package.module:function`."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise TaskError(unknown_name("task", name, TASKS) + ", or your own 'package.module:function'")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's raises
        raise TaskError(f"task {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise TaskError(f"task {name!r} is a {type(found).__name__}, not a function that returns a Task")
    return found  # type: ignore[no-any-return]


def _checked_rewards(name: str, verifier: Any, weights: Any) -> dict[str, Any]:
    """The fields `verifier` and `weights` of a `Task`, where they are given."""
    several = isinstance(verifier, Sequence) and not isinstance(verifier, str)
    names = verifier if several else [verifier] * (verifier is not None)
    if not all(isinstance(one, str) for one in names):
        raise TaskError(f"task {name!r}: verifier is {verifier!r}; it must be a name, or a list of names")
    of_numbers = isinstance(weights, Sequence) and not isinstance(weights, str)
    if not of_numbers or any(isinstance(one, bool) or not isinstance(one, int | float) for one in weights):
        raise TaskError(f"task {name!r}: weights is {weights!r}; it must be a list of numbers, one for each verifier")
    if weights and not names:
        raise TaskError(f"task {name!r}: weights {weights!r} without verifier; name the functions that they are for")
    chosen = tuple(names) if several else verifier
    return {} if verifier is None else {"verifier": chosen, "weights": tuple(map(float, weights))}
