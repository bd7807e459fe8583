"""Objectives: pure functions of tensors that declare what they need. Imports torch and `driftproof.types` alone.

```python
from driftproof.objectives import build, Responses
objective = build("asympo", floor=1e-2)
out = objective(Responses.from_padded(logprobs_RT, mask_RT, advantages_R))
out.loss.backward()
```
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from driftproof.names import unknown_name
from driftproof.objectives.behavior_corrected import GRPO
from driftproof.objectives.behavior_free import SPO, ASymPO, Naive
from driftproof.objectives.objective import Aggregation, Objective, ObjectiveError, ObjectiveOutput
from driftproof.objectives.responses import Responses

OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in (Naive, SPO, ASymPO, GRPO)}

__all__ = ["OBJECTIVES", "Aggregation", "Objective", "ObjectiveError", "ObjectiveOutput", "Responses", "build"]


def build(name: str, /, **hyper_parameters: Any) -> Objective:
    """The objective called `name`.

    Raises:
        ObjectiveError: unknown name or field, listing the valid ones, or a value out of range.
    """
    if name not in OBJECTIVES:
        raise ObjectiveError(unknown_name("objective", name, OBJECTIVES))
    valid = [field.name for field in fields(OBJECTIVES[name])]
    for field in hyper_parameters:
        if field not in valid:
            raise ObjectiveError(f"objective {name!r}: {unknown_name('field', field, valid)}")
    return OBJECTIVES[name](**hyper_parameters)
