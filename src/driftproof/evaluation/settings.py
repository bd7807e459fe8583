"""Settings of evaluation on held-out prompts, as a recipe's `[evaluation]` gives them."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """Held-out prompts, and how often they are answered."""

    prompts: Annotated[int, Ge(0)] = 512
    """Held-out prompts before and after training; 0 is none."""
    every: Annotated[int, Ge(0)] = 0
    """Steps from one evaluation to the next during training, in a process of its own; 0 is none."""
    samples: Annotated[int, Ge(1)] = 4
    """Sampled responses to each prompt, to which one greedy response is added."""
