"""Whether a model's architecture can be trained and decoded, tried on a small stand-in before anything is started."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from driftproof.engines.embedded.decode import check_decoding
from driftproof.errors import EngineError, ModelError
from driftproof.learner.policy import Policy
from driftproof.runtime.resources import read_config
from driftproof.weights.models import checkpoint_activations
from driftproof.weights.standin import stand_in


def check_architecture(model: Path, *, decoded: bool, gradient_checkpointing: bool = False) -> None:
    """Refuse a model that would be trained or (`decoded`: by the embedded engine) decoded wrongly.

    Raises:
        ModelError: with the sentence that the run would end with.
    """
    _check(read_config(model).to_json_string(use_diff=False), model, decoded, gradient_checkpointing)


@lru_cache(maxsize=16)
def _check(configuration: str, model: Path, decoded: bool, gradient_checkpointing: bool) -> None:
    small = stand_in(read_config(model))
    if small is None:
        return
    try:
        Policy(small)
        if gradient_checkpointing:
            checkpoint_activations(small)
        if decoded:
            check_decoding(small)
    except (ModelError, EngineError) as error:
        raise ModelError(f"{model}: {error}") from error
