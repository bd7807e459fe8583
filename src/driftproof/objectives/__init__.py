"""Objectives: pure functions of tensors that declare what they need. Imports torch and nothing heavier.

```python
from driftproof.objectives import build, Responses
objective = build("asympo", floor=1e-2)
out = objective(Responses.from_padded(logprobs_RT, mask_RT, advantages_R))
out.loss.backward()
```
"""

import importlib
from dataclasses import fields
from typing import Any

from driftproof.errors import ObjectiveError, unknown_name
from driftproof.objectives.actor_critic import PPO
from driftproof.objectives.behavior_free import GPG, RFT, SPO, ASymPO, AsymRE, Naive, ScaledASymPO
from driftproof.objectives.clipped import GRPO, GSPO, M2PO, DrGRPO
from driftproof.objectives.objective import Aggregation, Objective, ObjectiveOutput
from driftproof.objectives.penalized import DRPO, SimplePO
from driftproof.objectives.responses import Responses
from driftproof.objectives.weighted import CISPO, DPPOKL, DPPOTV, TOPR

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        *(Naive, GPG, SPO, ASymPO, ScaledASymPO, AsymRE, RFT),
        *(PPO, GRPO, DrGRPO, GSPO, CISPO, DPPOTV, DPPOKL, DRPO, SimplePO, TOPR, M2PO),
    )
}

__all__ = ["OBJECTIVES", "Aggregation", "Objective", "ObjectiveError", "ObjectiveOutput", "Responses", "build", "find"]


def build(name: str, /, **hyper_parameters: Any) -> Objective:
    """The objective called `name`, or your own: `package.module:Class`, a subclass of `Objective`.

    Raises:
        ObjectiveError: unknown name or field, listing the valid ones, or a value out of range.
    """
    kind = find(name)
    valid = [field.name for field in fields(kind)]
    for field in hyper_parameters:
        if field not in valid:
            raise ObjectiveError(f"objective {name!r}: {unknown_name('field', field, valid)}")
    return kind(**hyper_parameters)


def find(name: str) -> type[Objective]:
    """The class called `name`, or the one at `package.module:Class`.

    Raises:
        ObjectiveError: unknown name, a module that cannot be imported, or what is there is no objective.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ObjectiveError(unknown_name("objective", name, OBJECTIVES) + ", or your own 'package.module:Class'")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ObjectiveError(f"objective {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ObjectiveError(f"objective {name!r} is no subclass of driftproof.objectives.Objective")
    return found
