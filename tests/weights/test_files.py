from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from driftproof.errors import DamageError
from driftproof.weights.files import WEIGHTS, TensorFile, read_header, write_tensors


def test_tied_tensors_are_written_once(tmp_path: Path):
    shared = torch.arange(6.0).reshape(2, 3)
    write_tensors(
        tmp_path / WEIGHTS, {"embedding": shared, "head": shared, "empty": torch.empty(0), "none": torch.empty(0)}
    )
    assert set(load_file(tmp_path / WEIGHTS)) == {"embedding", "empty", "none"}


def test_tensors_that_are_not_contiguous_are_written_as_they_look(tmp_path: Path):
    tensor = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / WEIGHTS, {"a": tensor.T, "b": tensor[:, :2].clone()})
    assert torch.equal(load_file(tmp_path / WEIGHTS)["a"], tensor.T)


def test_a_square_and_its_transpose_are_not_tied(tmp_path: Path):
    """They share memory, yet are different weights."""
    square = torch.arange(4.0).reshape(2, 2)
    write_tensors(tmp_path / WEIGHTS, {"a": square, "b": square.T})
    found = load_file(tmp_path / WEIGHTS)
    assert torch.equal(found["a"], square)
    assert torch.equal(found["b"], square.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_reader_reads_what_was_written(dtype: torch.dtype, tmp_path: Path):
    written = {"matrix": torch.randn(3, 5).to(dtype), "number": torch.tensor(2.5, dtype=dtype)}
    written |= {"nothing": torch.empty(0, 4, dtype=dtype), "vector": torch.randn(7).to(dtype)}
    file = tmp_path / WEIGHTS
    save_file(written, file, metadata={"format": "pt"})
    for changed in (file, shifted(file)):
        found = TensorFile(changed)
        assert set(found) == set(written)
        assert all(torch.equal(found[name], tensor) for name, tensor in written.items())
        assert {name: stored.shape for name, stored in read_header(changed).items()} == {
            name: tuple(tensor.shape) for name, tensor in written.items()
        }


def shifted(file: Path) -> Path:
    """The same tensors at places that are no multiples of their size."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    other = file.with_name("shifted.safetensors")
    other.write_bytes((length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :])
    return other


def test_types_that_no_weights_have_are_refused(tmp_path: Path):
    save_file({"number": torch.tensor([1, 2])}, tmp_path / WEIGHTS)
    with pytest.raises(DamageError, match="number is of type I64; known are F64, F32, F16, BF16"):
        TensorFile(tmp_path / WEIGHTS)["number"]


def safetensors(header: Any, data: bytes) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is cut off: its 0 bytes have no whole header"),
        (safetensors({"a": ENTRY}, bytes(8))[:20], "is cut off: its 20 bytes have no whole header"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "is cut off"),
        (safetensors({"a": ENTRY}, bytes(7)), "bytes; its header says"),
        (safetensors({"a": ENTRY}, bytes(9)), "bytes; its header says"),
        (safetensors(b"hello", b""), "has a header that cannot be read"),
        (safetensors(b"[" * 100_000, b""), "has a header that cannot be read"),
        (safetensors([], b""), "has a header that cannot be read"),
        (safetensors({"a": 1}, b""), "has a header that cannot be read"),
        (safetensors({"a": ENTRY | {"shape": [3]}}, bytes(8)), "has a header that cannot be read"),
        (safetensors({"a": ENTRY | {"shape": [-2]}}, bytes(8)), "has a header that cannot be read"),
        (safetensors({"a": ENTRY | {"shape": [2.0]}}, bytes(8)), "has a header that cannot be read"),
        (safetensors({"a": ENTRY | {"data_offsets": [8, 0]}}, bytes(8)), "has a header that cannot be read"),
        (safetensors({"a": ENTRY | {"data_offsets": [0]}}, bytes(8)), "has a header that cannot be read"),
    ],
)
def test_what_is_no_whole_file_is_refused(content: bytes, problem: str, tmp_path: Path):
    (tmp_path / WEIGHTS).write_bytes(content)
    for reader in (read_header, TensorFile):
        with pytest.raises(DamageError, match=re.escape(problem)):
            reader(tmp_path / WEIGHTS)


def test_a_file_without_tensors_is_a_file(tmp_path: Path):
    write_tensors(tmp_path / WEIGHTS, {})
    assert dict(TensorFile(tmp_path / WEIGHTS)) == read_header(tmp_path / WEIGHTS) == {}


def test_headers_are_read_without_torch():
    code = "import sys, driftproof.weights.checkpoints; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
