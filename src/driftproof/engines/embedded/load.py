"""Weights of a snapshot directory into a model in memory: all of them or none, never pickle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from driftproof.errors import DamageError, EngineError
from driftproof.weights.files import StoredTensor, TensorFile, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def load_weights(model: PreTrainedModel, directory: Path) -> None:
    """Copy the weights of a Hugging Face model directory into the parameters of `model`, in place.

    Reads `model.safetensors` or the shards named in `model.safetensors.index.json`. Tensors must have the names of the
    model's `state_dict`; of tied weights one name is enough. Names, shapes and types are checked before the first copy.

    Raises:
        EngineError: a file that cannot be read, a tensor that is missing, unknown, of another shape or type.
        FileNotFoundError: no weights there, or no longer (a publisher removes old snapshots).
    """
    try:
        files = [TensorFile(path) for path in weight_files(directory)]
        stored = {name: tensor for file in files for name, tensor in file.header.items()}
        holder = {name: file for file in files for name in file}
        matched = [(target, holder[name][name]) for name, target in _match(model, stored, directory)]
        for target, source in matched:
            target.copy_(source)
    except FileNotFoundError:
        raise
    except (OSError, DamageError) as error:
        raise EngineError(f"the weights in {directory} cannot be read: {error}") from error


def _match(model: PreTrainedModel, stored: Mapping[str, StoredTensor], directory: Path) -> list[tuple[str, Tensor]]:
    """Pair each tensor of the model with the name that it is stored under."""
    tied: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied.setdefault(id(tensor), (tensor, []))[1].append(name)
    plan = []
    for tensor, names in tied.values():
        name = next((name for name in names if name in stored), None)
        if name is None:
            raise EngineError(f"{directory} has no tensor {' or '.join(names)}; it is not a snapshot of this model")
        shape = list(stored[name].shape)
        if shape != list(tensor.shape):
            raise EngineError(
                f"{directory}: {name} has shape {shape}, this engine's model has {list(tensor.shape)}; "
                "it is not a snapshot of this model"
            )
        plan.append((name, tensor))
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    known = {name for _, names in tied.values() for name in names}
    unknown = sorted(n for n in stored.keys() - known if not any(pattern.search(n) for pattern in ignored))
    if unknown:
        raise EngineError(f"{directory} has tensors this engine's model has not: {', '.join(unknown[:3])}")
    return plan
