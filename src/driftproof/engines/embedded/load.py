"""Weights of a snapshot directory into a model in memory: all of them or none, never pickle."""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from driftproof.errors import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
        with ExitStack() as stack:
            shards, readers = {}, {}
            for file in weight_files(directory):
                handle: Any = stack.enter_context(safe_open(file, framework="pt"))
                shards.update(dict.fromkeys(handle.keys(), handle))
                readers.update(dict.fromkeys(handle.keys(), tensor_reader(file)))
            matched = [(target, readers[name](name)) for name, target in _match(model, shards, directory)]
            for target, source in matched:
                target.copy_(source)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError) as error:
        raise EngineError(f"the weights in {directory} cannot be read: {error}") from error


def tensor_reader(file: Path) -> Callable[[str], Tensor]:
    """A function from names to the tensors of a safetensors file, which lie in the mapped file and must be copied.

    For files that are read again and again: `get_tensor` of safetensors 0.8 keeps 62 bytes of each tensor for ever.

    Raises:
        EngineError: no safetensors file, or a type of numbers that no weights have.
    """
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    start = 8 + int.from_bytes(mapped[:8], "little")
    try:
        header = json.loads(mapped[8:start])
    except ValueError as error:
        raise EngineError(f"{file} has a header that cannot be read: {error}") from error

    def read(name: str) -> Tensor:
        dtype, shape = _DTYPES.get(header[name]["dtype"]), header[name]["shape"]
        if dtype is None:
            raise EngineError(f"{file}: {name} is of type {header[name]['dtype']}; known are {', '.join(_DTYPES)}")
        begin, end = (start + offset for offset in header[name]["data_offsets"])
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        aligned = begin % dtype.itemsize == 0
        buffer, offset = (mapped, begin) if aligned else (bytearray(mapped[begin:end]), 0)
        return torch.frombuffer(buffer, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)

    return read


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
