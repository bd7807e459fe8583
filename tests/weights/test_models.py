import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from driftproof.errors import ModelError
from driftproof.weights.models import inspect_model, load_tokenizer, stop_ids

Edit = Callable[[Path], object]


@pytest.fixture
def model_copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def edit_json(file: str, **changes: Any) -> Edit:
    """Set keys of a JSON file; None removes one."""

    def edit(directory: Path) -> None:
        content = json.loads((directory / file).read_text()) | changes
        (directory / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return edit


def test_a_model_directory_is_described_without_its_weights(model_copy: Path):
    (model_copy / "model.safetensors").write_bytes(b"never opened")
    info = inspect_model(model_copy)
    config = json.loads((model_copy / "config.json").read_text())
    assert (info.path, info.context, info.vocabulary) == (model_copy, 16_384, config["vocab_size"])


def test_the_fingerprint_is_of_configuration_and_tokenizer(model_copy: Path):
    before = inspect_model(model_copy).fingerprint
    (model_copy / "model.safetensors").write_bytes(b"other weights")
    assert inspect_model(model_copy).fingerprint == before
    edit_json("config.json", rms_norm_eps=1e-3)(model_copy)
    assert inspect_model(model_copy).fingerprint != before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            shutil.rmtree,
            "does not exist; give a Hugging Face model directory, a model of the hub by OWNER/NAME, or make a tiny one",
        ),
        (lambda d: (d / "config.json").unlink(), "has no config.json; it is not a Hugging Face model directory"),
        (lambda d: (d / "config.json").write_text("{"), "is not a configuration transformers can read"),
        (edit_json("config.json", model_type="nonsense"), "is not a configuration transformers can read"),
        (
            lambda d: (d / "model.safetensors").unlink(),
            "has no *.safetensors weights (pickled weights are never opened",
        ),
        (
            lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
            "has no *.safetensors weights (pickled weights are never opened; convert them first)",
        ),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer (tokenizer.json)"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "the tokenizer cannot be read"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "the tokenizer cannot be read"),
        (edit_json("tokenizer_config.json", eos_token=None), "the tokenizer has no end-of-sequence token"),
        (edit_json("config.json", vocab_size=20), "tokens, the model only 20; they do not belong together"),
    ],
)
def test_a_directory_that_cannot_be_used_is_refused_with_a_sentence(model_copy: Path, edit: Edit, message: str):
    edit(model_copy)
    with pytest.raises(ModelError) as caught:
        inspect_model(model_copy)
    assert str(model_copy) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(("configured", "expected"), [(None, (1,)), (5, (1, 5)), ([7, 1, 3], (1, 3, 7))])
def test_responses_end_at_the_stop_tokens_of_tokenizer_and_model(model_copy: Path, configured: Any, expected: Any):
    tokenizer = load_tokenizer(model_copy)
    assert tokenizer.eos_token_id == 1
    (model_copy / "generation_config.json").write_text(json.dumps({"eos_token_id": configured}))
    assert stop_ids(tokenizer, model_copy) == expected
    (model_copy / "generation_config.json").unlink()
    assert stop_ids(tokenizer, model_copy) == (1,)
