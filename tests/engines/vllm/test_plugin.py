from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from driftproof.engines.vllm.plugin import check_snapshot, read_shapes, read_tensors, refresh_shared
from driftproof.errors import EngineError
from driftproof.weights.snapshots import Publisher

TENSORS = {"model.embed.weight": torch.arange(6.0).view(3, 2), "model.norm.weight": torch.ones(2)}


def write(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_a_published_snapshot_of_a_tied_model_is_read_whole(tmp_path: Path, tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    snapshot = Publisher(tmp_path, tiny_model_dir).publish(3, model.state_dict()).path
    check_snapshot(snapshot, tiny_model_dir, read_shapes(tiny_model_dir), tied=True)
    read = dict(read_tensors(snapshot))
    assert list(read) == sorted(read)
    assert read.keys() == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(read[name], parameter) for name, parameter in model.named_parameters())


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    (name, first), (other, second) = TENSORS.items()
    save_file({name: first}, tmp_path / "model-1.safetensors")
    save_file({other: second}, tmp_path / "model-2.safetensors")
    # Not in the index: another format of the same weights.
    save_file({"tok": first}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {name: "model-1.safetensors", other: "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_shapes(tmp_path) == {name: (3, 2), other: (2,)}
    assert {name for name, _ in read_tensors(tmp_path)} == set(TENSORS)


@pytest.mark.parametrize(
    ("change", "tied", "problem"),
    [
        ({"lm_head.weight": None}, False, "it has no tensor lm_head.weight"),
        ({"model.norm.weight": None}, True, "it has no tensor model.norm.weight"),
        ({"model.norm.bias": torch.ones(2)}, True, "it has a tensor model.norm.bias"),
        ({"model.embed.weight": torch.ones(4, 2)}, True, r"model.embed.weight has shape \[4, 2\].*\[3, 2\]"),
    ],
)
def test_what_is_no_snapshot_of_the_model_is_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], tied: bool, problem: str
) -> None:
    base = {**TENSORS, "lm_head.weight": torch.ones(3, 2)}
    model = write(tmp_path / "model", base)
    changed = {name: tensor for name, tensor in {**base, **change}.items() if tensor is not None}
    with pytest.raises(EngineError, match=problem):
        check_snapshot(write(tmp_path / "step-1", changed), model, read_shapes(model), tied=tied)


def test_a_tied_snapshot_may_lack_the_head_that_the_model_stores(tmp_path: Path) -> None:
    model = write(tmp_path / "model", {**TENSORS, "lm_head.weight": torch.ones(3, 2)})
    check_snapshot(write(tmp_path / "step-1", TENSORS), model, read_shapes(model), tied=True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_shapes(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(EngineError, match="cannot be read"):
        read_shapes(tmp_path)


class Packed:
    """As vLLM's layers on CPU: computes with a copy of the weight that is made when it is processed."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.packed = layer.weight.detach().clone()


def test_a_tied_head_does_not_go_on_with_the_weight_it_had() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 3, bias=False)})
    alone = nn.Linear(2, 2)
    model["alone"] = alone
    model["head"].weight = model["embed"].weight
    for name in ("embed", "head", "alone"):
        model[name].quant_method = Packed()
        model[name].quant_method.process_weights_after_loading(model[name])
    with torch.no_grad():
        model["embed"].weight.add_(1)
        alone.weight.add_(1)
    refresh_shared(model)
    assert torch.equal(model["head"].packed, model["embed"].weight)
    assert not torch.equal(alone.packed, alone.weight), "a layer that shares nothing is left to vLLM"


def test_the_plugin_needs_neither_vllm_nor_transformers() -> None:
    """It is imported in every process of vLLM, whose environment has other versions, or lacks them."""
    heavy = "{'vllm', 'transformers', 'httpx2'}"
    code = f"import sys, driftproof.engines.vllm.plugin; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
