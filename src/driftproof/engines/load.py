"""Weights of a snapshot directory into a model in memory: all of them or none, never pickle."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from driftproof.engines.protocol import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@torch.no_grad()
def load_weights(model: PreTrainedModel, directory: Path) -> None:
    """Copy the weights of a Hugging Face model directory into the parameters of `model`, in place.

    Reads `model.safetensors` or the shards named in `model.safetensors.index.json`. Tensors must have the names of the
    model's `state_dict`; of tied weights one name is enough. Names and shapes are checked before the first copy.

    Raises:
        EngineError: a file that cannot be read, a tensor that is missing, unknown or of another shape.
        FileNotFoundError: no weights there, or no longer (a publisher removes old snapshots).
    """
    try:
        with ExitStack() as stack:
            shards = {}
            for file in weight_files(directory):
                handle: Any = stack.enter_context(safe_open(file, framework="pt"))
                shards.update(dict.fromkeys(handle.keys(), handle))
            for name, target in _match(model, shards, directory):
                target.copy_(shards[name].get_tensor(name))
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError) as error:
        raise EngineError(f"the weights in {directory} cannot be read: {error}") from error


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in order."""
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    if not (directory / _INDEX).is_file():
        raise FileNotFoundError(f"{directory} has neither {_SINGLE} nor {_INDEX}; give a Hugging Face model directory")
    try:
        shards = sorted(set(json.loads((directory / _INDEX).read_text())["weight_map"].values()))
        # Files of this directory, whatever the index says.
        return [directory / Path(shard).name for shard in shards]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"{directory / _INDEX} is not an index of shards: {error}") from error


def _match(model: PreTrainedModel, shards: dict[str, Any], directory: Path) -> list[tuple[str, Tensor]]:
    """Pair each tensor of the model with its name in the shards (open files by tensor name)."""
    tied: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied.setdefault(id(tensor), (tensor, []))[1].append(name)
    plan = []
    for tensor, names in tied.values():
        name = next((name for name in names if name in shards), None)
        if name is None:
            raise EngineError(f"{directory} has no tensor {' or '.join(names)}; it is not a snapshot of this model")
        shape = list(shards[name].get_slice(name).get_shape())
        if shape != list(tensor.shape):
            raise EngineError(
                f"{directory}: {name} has shape {shape}, this engine's model has {list(tensor.shape)}; "
                "it is not a snapshot of this model"
            )
        plan.append((name, tensor))
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    known = {name for _, names in tied.values() for name in names}
    unknown = sorted(n for n in shards.keys() - known if not any(pattern.search(n) for pattern in ignored))
    if unknown:
        raise EngineError(f"{directory} has tensors this engine's model has not: {', '.join(unknown[:3])}")
    return plan
