"""A model directory from a stranger: whatever lies in it, none of its code is run, and no pickle is opened."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.embedded.load import load_weights
from driftproof.errors import ConfigError, EngineError, ModelError
from driftproof.learner.policy import Policy
from driftproof.runtime.resources import read_config
from driftproof.tasks.codec import Codec
from driftproof.tiny.model import make_tiny_model
from driftproof.weights.models import inspect_model, load_tokenizer
from tests.fuzz.parsers import model_directory
from tests.runtime.runs import train, write_recipe

DOORS: dict[str, Callable[[Path], object]] = {
    "inspect": inspect_model,
    "memory": read_config,
    "tokenizer": load_tokenizer,
    "codec": Codec,
    "learner": lambda path: Policy.open(path, device="cpu"),
    "engine": lambda path: EmbeddedEngine.from_directory(path, slots=2, device="cpu"),
}
WITH_WEIGHTS = ("inspect", "learner", "engine")


class Trap:
    """Pickled, it makes a file as soon as it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """The file that is there once something has been run or opened that must not be."""
    return tmp_path / "sprung"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_directory(), tmp_path / "model"))


def set_pickles(model: Path, sprung: Path) -> None:
    pickled = pickle.dumps(Trap(sprung))
    pickle.loads(pickled)
    assert sprung.exists()
    sprung.unlink()
    names = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pkl", "vocab.pkl", "model.ckpt.index")
    for name in names:
        (model / name).write_bytes(pickled)


@pytest.mark.parametrize("door", WITH_WEIGHTS)
def test_pickled_weights_alone_are_refused_and_never_opened(door: str, model: Path, sprung: Path) -> None:
    set_pickles(model, sprung)
    (model / "model.safetensors").unlink()
    with pytest.raises((ModelError, EngineError), match="safetensors"):
        DOORS[door](model)
    assert not sprung.exists()


@pytest.mark.parametrize("door", WITH_WEIGHTS[1:])
def test_pickled_weights_are_no_substitute_for_broken_ones(door: str, model: Path, sprung: Path) -> None:
    set_pickles(model, sprung)
    (model / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises((ModelError, EngineError)):
        DOORS[door](model)
    assert not sprung.exists()


def test_a_snapshot_of_pickles_is_not_loaded(model: Path, sprung: Path) -> None:
    from transformers import AutoModelForCausalLM

    own = AutoModelForCausalLM.from_pretrained(model)
    set_pickles(model, sprung)
    (model / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_weights(own, model)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    with pytest.raises(EngineError, match="cannot be read"):
        load_weights(own, model)
    assert not sprung.exists()


def test_an_index_of_shards_does_not_reach_outside_its_directory(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    own = AutoModelForCausalLM.from_pretrained(model)
    (model / "model.safetensors").rename(tmp_path / "outside.safetensors")
    shards = dict.fromkeys(own.state_dict(), "../outside.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(FileNotFoundError):
        load_weights(own, model)


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({sprung!r}).touch()
class StrangeConfig(LlamaConfig):
    model_type = "{kind}"
class Strange(LlamaForCausalLM):
    config_class = StrangeConfig
class StrangeTokenizer(PreTrainedTokenizerFast):
    pass
"""


def set_code(model: Path, sprung: Path, kind: str) -> None:
    """Code beside the weights, which configuration and tokenizer ask to be run."""
    (model / "modeling.py").write_text(CODE.format(sprung=str(sprung), kind=kind))
    classes = {"AutoConfig": "modeling.StrangeConfig", "AutoModelForCausalLM": "modeling.Strange"}
    change(model / "config.json", model_type=kind, auto_map=classes)
    tokenizer = {"AutoTokenizer": ["modeling.StrangeTokenizer", "modeling.StrangeTokenizer"]}
    change(model / "tokenizer_config.json", auto_map=tokenizer, tokenizer_class="StrangeTokenizer")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The questions that were asked at the terminal; each is answered with yes."""
    questions: list[str] = []

    def answer(question: str = "") -> str:
        questions.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    return questions


@pytest.mark.parametrize("kind", ["llama", "strange"])
@pytest.mark.parametrize("door", DOORS)
def test_code_in_a_model_directory_is_not_run(
    door: str, kind: str, model: Path, sprung: Path, asked: list[str]
) -> None:
    set_code(model, sprung, kind)
    with contextlib.suppress(ModelError, EngineError):
        DOORS[door](model)
    assert not sprung.exists()
    assert not asked


def test_that_code_would_have_been_run(
    model: Path, sprung: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))
    set_code(model, sprung, "strange")
    AutoConfig.from_pretrained(model, trust_remote_code=True)
    assert sprung.exists()


def test_the_commands_run_none_of_it_either(model: Path, sprung: Path, tmp_path: Path, asked: list[str]) -> None:
    set_pickles(model, sprung)
    set_code(model, sprung, "strange")
    recipe = write_recipe(tmp_path, model)
    ended = train(recipe, "--run.directory", tmp_path / "run")
    assert ended.code == 2
    assert "config.json" in ended.stderr
    with pytest.raises(ConfigError, match="is no tiny model"):
        make_tiny_model(model, exist_ok=True)
    assert not sprung.exists()
    assert not asked
