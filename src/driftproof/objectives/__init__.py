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
from driftproof.objectives.actor_critic import PPO
from driftproof.objectives.behavior_free import GPG, RFT, SPO, ASymPO, AsymRE, Naive
from driftproof.objectives.clipped import GRPO, GSPO, M2PO, DrGRPO
from driftproof.objectives.objective import Aggregation, Objective, ObjectiveError, ObjectiveOutput
from driftproof.objectives.penalized import DRPO, SimplePO
from driftproof.objectives.responses import Responses
from driftproof.objectives.weighted import CISPO, DPPOKL, DPPOTV, TOPR

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        *(Naive, GPG, SPO, ASymPO, AsymRE, RFT),
        *(PPO, GRPO, DrGRPO, GSPO, CISPO, DPPOTV, DPPOKL, DRPO, SimplePO, TOPR, M2PO),
    )
}

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
