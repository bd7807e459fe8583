"""Tasks: prompts to learn on, prompts held out, and the name of the verifier.

```python
from driftproof.tasks import build
task = build("arithmetic", digits=2)
task.train[0].text, task.train[0].answer
```
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from driftproof.errors import TaskError, unknown_name
from driftproof.tasks.benchmarks import BENCHMARKS, benchmark, math
from driftproof.tasks.files import gsm8k, jsonl
from driftproof.tasks.protocol import RecordedGroup, Task
from driftproof.tasks.reasoning_gym import reasoning_gym
from driftproof.tasks.recorded import read_recorded, recorded, with_recorded
from driftproof.tasks.sums import arithmetic, running_sums

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
    """The task called `name`, made with `fields` as its arguments.

    TaskError for an unknown name or field, listing the valid ones; a missing field; a value of the wrong type or out of
    range; data that cannot be read.
    """
    from pydantic import ValidationError, validate_call

    if name not in TASKS:
        raise TaskError(unknown_name("task", name, TASKS))
    parameters = inspect.signature(TASKS[name]).parameters
    for field in fields:
        if field not in parameters:
            raise TaskError(f"task {name!r}: {unknown_name('field', field, parameters)}")
    for field, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and field not in fields:
            raise TaskError(f"task {name!r} needs the field {field!r}")
    try:
        return validate_call(TASKS[name])(**fields)
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, wrong["loc"][:1]))
        raise TaskError(f"task {name!r}: {field} is {wrong['input']!r}: {wrong['msg']}") from error
