"""Settings of the model, as a recipe's `[model]` gives them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The models that a run begins with."""

    path: Path
    """Hugging Face model directory of the policy, or its name on the hub, like `Qwen/Qwen3-0.6B`."""
    revision: str | None = None
    """Branch, tag or commit of a hub name; the newest of its main branch if not given."""
    reference: Path | None = None
    """Policy that a KL term of the objective pulls to, also a directory or hub name; that at `path` if not given."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the model's chat template, for every prompt of the run, like `enable_thinking = false`."""
