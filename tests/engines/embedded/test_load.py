import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from driftproof.engines.embedded.load import load_weights
from driftproof.errors import EngineError
from driftproof.weights.files import WEIGHTS, write_tensors

from ..tiny import CONFIGS, tiny_model


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def change(directory: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of a snapshot; dots in names are written as `__`."""
    state = load_file(directory / "model.safetensors")
    for key, tensor in tensors.items():
        name = key.replace("__", ".")
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    save_file(state, directory / "model.safetensors")


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    tiny_model("qwen3", seed=1).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("architecture", CONFIGS)
def test_takes_all_weights_in_place(architecture, tmp_path):
    source, model = tiny_model(architecture, seed=1), tiny_model(architecture, seed=0)
    write_tensors(tmp_path / WEIGHTS, source.state_dict())
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    load_weights(model, tmp_path)
    torch.testing.assert_close(weights(model), weights(source), rtol=0, atol=0)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_takes_the_shards_that_transformers_writes(architecture, tmp_path):
    source, model = tiny_model(architecture, seed=1), tiny_model(architecture, seed=0)
    source.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    load_weights(model, tmp_path)
    torch.testing.assert_close(weights(model), weights(source), rtol=0, atol=0)


def test_of_tied_weights_either_name_is_enough(snapshot):
    model, expected = tiny_model("qwen3", seed=0), weights(tiny_model("qwen3", seed=1))
    embedding = load_file(snapshot / "model.safetensors")["model.embed_tokens.weight"]
    change(snapshot, model__embed_tokens__weight=None, lm_head__weight=embedding)
    load_weights(model, snapshot)
    torch.testing.assert_close(weights(model), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model__norm__weight": None}, r"no tensor model\.norm\.weight"),
        ({"model__embed_tokens__weight": torch.zeros(99, 32)}, r"model\.embed_tokens\.weight has shape \[99, 32\].*61"),
        ({"model__layers__7__mlp__up_proj__weight": torch.zeros(2, 2)}, r"not: model\.layers\.7\.mlp"),
    ],
)
def test_a_snapshot_of_another_model_is_refused_by_name_and_changes_nothing(snapshot, tensors, message):
    model = tiny_model("qwen3", seed=0)
    before = weights(model)
    change(snapshot, **tensors)
    with pytest.raises(EngineError, match=message):
        load_weights(model, snapshot)
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)


def test_a_directory_without_weights_is_not_found(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors"):
        load_weights(tiny_model(), tmp_path)


def test_a_missing_shard_is_not_found(tmp_path):
    tiny_model("qwen3", seed=1).save_pretrained(tmp_path, max_shard_size="10KB")
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError):
        load_weights(tiny_model("qwen3"), tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"weights": {}})])
def test_a_broken_index_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(EngineError, match="not an index"):
        load_weights(tiny_model(), tmp_path)


def test_a_broken_file_is_refused(snapshot):
    (snapshot / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(EngineError, match="cannot be read"):
        load_weights(tiny_model(), snapshot)


def test_a_type_that_no_weights_have_leaves_the_old_weights(snapshot: Path):
    model = tiny_model("qwen3", seed=0)
    before = weights(model)
    change(snapshot, model__norm__weight=torch.ones_like(model.model.norm.weight, dtype=torch.int64))
    with pytest.raises(EngineError, match=r"model\.norm\.weight is of type I64"):
        load_weights(model, snapshot)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_loading_again_and_again_takes_no_memory(snapshot: Path):
    model = tiny_model("qwen3", seed=0)
    for _ in range(100):
        load_weights(model, snapshot)
    before = anonymous_kib()
    for _ in range(600):
        load_weights(model, snapshot)
    assert anonymous_kib() - before < 300


def anonymous_kib() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))
