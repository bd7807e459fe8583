"""Weights of a snapshot directory, or of memory, into a model: all of them or none, never pickle."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from driftproof.errors import DamageError, EngineError
from driftproof.weights.files import TensorFile, weight_files
from driftproof.weights.names import is_weight, module_state


@torch.no_grad()
def load_weights(model: PreTrainedModel, directory: Path) -> None:
    """Copy the weights of a Hugging Face model directory into the parameters of `model`, in place.

    Tensors have the names that transformers stores them under, or those of the model's `state_dict`; of tied weights
    one name is enough. All is checked before the first copy: EngineError for a file or tensor that does not fit,
    FileNotFoundError where there are no weights.
    """
    try:
        files = [TensorFile(path) for path in weight_files(directory)]
        stored = {name: file[name] for file in files for name in file if is_weight(name)}
        tensors = module_state(model, stored)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        for target, name in _match(model, shapes, str(directory)):
            target.copy_(tensors[name])
    except FileNotFoundError:
        raise
    except (OSError, DamageError) as error:
        raise EngineError(f"the weights in {directory} cannot be read: {error}") from error


@torch.no_grad()
def load_state(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Copy a `state_dict` into the parameters of `model`, in place; EngineError, and nothing is copied, where a tensor
    is missing, unknown or of another shape."""
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for target, name in _match(model, shapes, "the given state"):
        target.copy_(state[name])


def _match(model: PreTrainedModel, shapes: Mapping[str, Sequence[int]], source: str) -> list[tuple[Tensor, str]]:
    """Pair each tensor of the model with its name among those of a source, which are as many."""
    tied: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied.setdefault(id(tensor), (tensor, []))[1].append(name)
    pairs = []
    for tensor, names in tied.values():
        name = next((name for name in names if name in shapes), None)
        if name is None:
            raise EngineError(f"{source} has no tensor {' or '.join(names)}; it is not a snapshot of this model")
        if list(shapes[name]) != list(tensor.shape):
            raise EngineError(
                f"{source}: {name} has shape {list(shapes[name])}, this engine's model has {list(tensor.shape)}; "
                "it is not a snapshot of this model"
            )
        pairs.append((tensor, name))
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    known = {name for _, names in tied.values() for name in names}
    unknown = sorted(n for n in shapes.keys() - known if not any(pattern.search(n) for pattern in ignored))
    if unknown:
        raise EngineError(f"{source} has tensors this engine's model has not: {', '.join(unknown[:3])}")
    return pairs
