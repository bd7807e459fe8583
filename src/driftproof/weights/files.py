"""Safetensors: the one reader and the one writer, and which files make up a model directory.

Guarantees: nothing is unpickled; a file that is not as long as its header says is refused before any of it is used; an
index of shards reaches no file outside its directory, and neither does a link among the other files. Headers are read
without torch.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from driftproof.errors import DamageError
from driftproof.run import fsync

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATES = "additional_chat_templates"
"""Folder of a model's chat templates beside the one that is used."""
# Bytes; the format allows no more.
LARGEST_HEADER = 100_000_000
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor in a safetensors file: type in the words of the format (`F32`, `BF16`), shape, bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a safetensors file by name; none of their values is read.

    Raises:
        DamageError: no safetensors file, or not as long as its header says. OSError: not there, not readable.
    """
    with path.open("rb") as file:
        return _parse(path, file)


def _parse(path: Path, file: BinaryIO) -> dict[str, StoredTensor]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    if size < 8 or start > size or length > LARGEST_HEADER:
        raise DamageError(f"{path} is cut off: its {size:,} bytes have no whole header")
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _stored_tensor(start, **entry) for name, entry in header.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{path} has a header that cannot be read: {error}") from error
    expected = max((tensor.end for tensor in tensors.values()), default=start)
    if size != expected:
        raise DamageError(f"{path} has {size:,} bytes; its header says {expected:,}")
    return tensors


def _stored_tensor(start: int, *, dtype: str, shape: list[int], data_offsets: list[int]) -> StoredTensor:
    begin, end = data_offsets
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or begin > end:
        raise ValueError(f"shape {shape} at {data_offsets}")
    if dtype in _ITEM_BYTES and end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(f"shape {shape} of type {dtype} in {end - begin} bytes")
    return StoredTensor(dtype=dtype, shape=tuple(shape), begin=start + begin, end=start + end)


class TensorFile(Mapping[str, "Tensor"]):
    """The tensors of a safetensors file by name; each lies in the mapped file and must be copied to be kept.

    For files that are read again and again: `get_tensor` of safetensors 0.8 keeps 62 bytes of each tensor for ever.
    """

    def __init__(self, path: Path) -> None:
        """Map a file; raises as `read_header` does."""
        with path.open("rb") as file:
            self.header = _parse(path, file)
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._path = path

    def __getitem__(self, name: str) -> Tensor:
        import torch

        stored = self.header[name]
        if stored.dtype not in _DTYPES:
            raise DamageError(f"{self._path}: {name} is of type {stored.dtype}; known are {', '.join(_DTYPES)}")
        dtype: torch.dtype = getattr(torch, _DTYPES[stored.dtype])
        if stored.begin == stored.end:
            return torch.empty(stored.shape, dtype=dtype)
        aligned = stored.begin % dtype.itemsize == 0
        buffer = self._mapped if aligned else bytearray(self._mapped[stored.begin : stored.end])
        offset = stored.begin if aligned else 0
        return torch.frombuffer(buffer, dtype=dtype, count=math.prod(stored.shape), offset=offset).view(stored.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header)

    def __len__(self) -> int:
        return len(self.header)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and force them to disk; one that is an earlier one under another name (tied) is left out."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen, kept = set(), {}
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() == 0 or identity not in seen:
            kept[name] = tensor.detach().contiguous()
        seen.add(identity)
    try:
        save_file(kept, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    # Safetensors writes for the owner alone; an inference server may run as somebody else.
    path.chmod(path.parent.stat().st_mode & 0o666)
    fsync(path)


def other_files(directory: Path) -> dict[str, Path]:
    """Configuration, tokenizer and chat templates of a model directory, by their names in it; no weights, no code.

    Raises:
        DamageError: one of them is a link that leads out of the model.
    """
    directory = directory.resolve()
    # In the hub's cache every file is a link into the blobs beside.
    homes = [directory, directory.parent.parent / "blobs"] if directory.parent.name == "snapshots" else [directory]
    found = {}
    for file in sorted([*directory.iterdir(), *(directory / TEMPLATES).glob("*.jinja")]):
        if file.suffix not in (".json", ".jinja", ".txt", ".model") or file.name.endswith(".index.json"):
            continue
        target = file.resolve()
        if not target.is_file():
            continue
        if not any(target.is_relative_to(home) for home in homes):
            raise DamageError(
                f"{file} is a link that leads out of the model, to {target}; snapshots have copies of it, which may be "
                "sent to workers: put the file itself there"
            )
        found[str(file.relative_to(directory))] = target
    return found


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in order: the one, or the shards that its index names.

    Raises:
        DamageError: an index that cannot be read. FileNotFoundError: neither file nor index.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{directory} has neither {WEIGHTS} nor {INDEX}; give a Hugging Face model directory")
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if any("\0" in shard for shard in shards):
            raise ValueError("a file's name has a NUL character")
        # Files of this directory, whatever the index says.
        return [directory / Path(shard).name for shard in shards]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{index} is not an index of shards: {error}") from error


def read_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a model directory by their names; raises as `read_header` and `weight_files` do."""
    return {name: tensor.shape for file in weight_files(directory) for name, tensor in read_header(file).items()}
