"""Settings of the model, as a recipe's `[model]` gives them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The models that a run begins with."""

    path: Path
    """Hugging Face model directory of the policy."""
    reference: Path | None = None
    """Policy that a KL term of the objective pulls to; the model at `path` if not given."""
