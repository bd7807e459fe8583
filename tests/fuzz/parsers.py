"""Everything that reads what comes from outside, with inputs that are nearly right and the error that it may raise.

They stand together, not beside the rooms' own tests, because `benchmarks.fuzz` runs the same ones with many inputs.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from hypothesis import strategies as st

from driftproof import tasks
from driftproof.config import Config, load_config
from driftproof.engines.http import ReplyError
from driftproof.engines.openai.wire import Call, Dialect, read_reply
from driftproof.errors import CheckpointError, ConfigError, EngineError, ModelError, TaskError
from driftproof.inbox.messages import MAX_RESPONSES, SHOWN_PROBLEMS, Refusal
from driftproof.inbox.reading import BodyError, GroupSize, read_groups
from driftproof.lab.settings import LabConfig
from driftproof.types import Prompt, Request, Sampling
from tests.fuzz.inputs import changed_bytes, changed_tree, words

ROOT = Path(__file__).parent.parent.parent
VOCABULARY = 300


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an input ended."""

    accepted: bool
    message: str = ""
    """Why it was refused."""


@dataclass(frozen=True, kw_only=True)
class Parser:
    """One door."""

    name: str
    inputs: st.SearchStrategy[Any]
    parse: Callable[[Any, Path], object]
    """Called with an input and an empty directory to put it in."""
    refuses: tuple[type[Exception], ...]
    slow: bool = False
    """Milliseconds to tens of them an input."""

    def __call__(self, value: Any) -> Outcome:
        """
        Raises:
            Exception: anything but what the parser may refuse with.
        """
        with tempfile.TemporaryDirectory() as directory:
            try:
                self.parse(value, Path(directory))
            except self.refuses as error:
                return Outcome(accepted=False, message=str(error))
        return Outcome(accepted=True)


def file_of(content: bytes, directory: Path, name: str) -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


# Recipes and overrides.

RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))
TOML_SCALARS = st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
TOML = st.recursive(
    TOML_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def _recipe(content: bytes, directory: Path) -> None:
    path = file_of(content, directory, "recipe.toml")
    config = load_config(path, ["--model.path", "model"])
    if b"[lab]" in content:
        LabConfig.load(path, ["--model.path", "model"])
    # What is accepted can be written and read again.
    assert Config.from_toml(config.to_toml()) == config or "nan" in config.to_toml()


def _recipe_tree(tree: Any, directory: Path) -> None:
    if isinstance(tree, dict):
        _recipe(tomli_w.dumps(tree).encode(errors="surrogatepass"), directory)


def _overrides(arguments: list[str], directory: Path) -> None:
    load_config(ROOT / "recipes" / "quickstart.toml", ["--model.path=model", *arguments])


def setting_names() -> list[str]:
    return [f"--{section}.{key}" for section, model in Config.model_fields.items()
            for key in getattr(model.annotation, "model_fields", ())]  # fmt: skip


SETTING = st.sampled_from(setting_names()) | words | words.map(lambda word: f"--{word}.{word}")
VALUE = words | st.sampled_from(
    ("0", "-1", "1e999", "nan", "[1]", "{a=1}", "1_0", "9" * 5000, "2020-01-01", "'x'\n[y]")
)

# Files of prompts.

ROWS: dict[str, list[dict[str, Any]]] = {
    "jsonl": [
        {"prompt": "47+85=", "answer": "132", "system": "Add."},
        {"prompt": [{"role": "user", "content": "1+1="}], "answer": 2.0, "level": None},
        {"data_source": "x", "prompt": [{"role": "user", "content": "a"}], "reward_model": {"ground_truth": "1"}},
        {
            "messages": [
                {"role": "system", "content": "Add."},
                {"role": "user", "content": [{"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "2"},
            ]
        },
    ],
    "gsm8k": [
        {"question": "Half of 144?", "answer": "144 / 2 = 72\n#### 72"},
        {"question": "?", "answer": "#### 1,000"},
    ],
    "math": [{"problem": "6 * 7?", "answer": "42"}, {"problem": "x?", "answer": "so \\boxed{\\frac{1}{3}}"}],
    "aime24": [{"problem": "6 * 7?", "answer": 42, "solution": "\\boxed{42}"}],
    "recorded": [
        {"problem": "1+1=", "answer": "2", "responses": [{"text": "2", "correct": True}, {"text": "3", "reward": 0.5}]}
    ],
}
FIELDS: dict[str, dict[str, Any]] = {"jsonl": {"heldout": 1}, "gsm8k": {"heldout": 1}, "math": {"heldout": 1}}


def _lines(rows: list[Any]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def _rows(name: str, content: bytes, directory: Path) -> None:
    task = tasks.build(name, path=file_of(content, directory, "rows.jsonl"), **FIELDS.get(name, {}))
    for prompt in (*task.train, *task.heldout):
        # What is accepted can be written to a log, and has something to compare with.
        prompt.text.encode()
        assert prompt.answer.encode().strip()


def rows_inputs(name: str) -> st.SearchStrategy[bytes]:
    rows = [*ROWS[name], *ROWS[name]]
    whole = [*rows, *ROWS["jsonl"]]
    by_value = st.lists(changed_tree(whole), max_size=4).map(lambda changed: _lines([*rows, *changed]))
    packed = gzip.compress(_lines(rows), mtime=0)
    return changed_bytes([_lines(rows), json.dumps(rows).encode(), packed]) | by_value


def _task_fields(value: tuple[str, dict[str, Any]], directory: Path) -> None:
    name, fields = value
    tasks.build(name, **fields)


def _parquet(content: bytes, directory: Path) -> None:
    tasks.build("math", path=file_of(content, directory, "rows.parquet"), heldout=1)


@cache
def parquet_file() -> bytes:
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS["math"] * 3), path)
        return path.read_bytes()


# Replies of servers.


def _reply(value: tuple[Dialect, bool, bool, bytes], directory: Path) -> None:
    dialect, want_logprobs, retokenize, content = value
    call = Call(request=_request(want_logprobs), samples=2, offset=0, max_tokens=4)
    reply = read_reply(dialect, content, call, vocabulary=VOCABULARY, encode=_encode if retokenize else None)
    assert 1 <= len(reply.responses) <= 2
    for response in reply.responses:
        assert 1 <= len(response.tokens) <= 4
        assert response.tokens.min() >= 0
        assert response.tokens.max() < VOCABULARY
        if want_logprobs and not retokenize:
            assert response.behavior_logprobs is not None
            assert np.isfinite(response.behavior_logprobs).all()
            assert len(response.behavior_logprobs) == len(response.tokens)


def _request(want_logprobs: bool) -> Request:
    return Request(
        key=1,
        prompt=Prompt(index=0, text="a", answer="b"),
        prompt_tokens=np.array([5, 6], np.int32),
        samples=2,
        sampling=Sampling(max_tokens=4, stop_ids=(1,)),
        want_logprobs=want_logprobs,
    )


def _encode(text: str) -> list[int]:
    return [*text.encode(), 1]


_CHOICE = {
    "token_ids": [97, 1],
    "prompt_token_ids": [5, 6],
    "finish_reason": "stop",
    "text": "a",
    "logprobs": {"token_logprobs": [-0.5, -1e-6]},
}
REPLIES = [
    {"choices": [_CHOICE, _CHOICE]},
    {"choices": [_CHOICE | {"finish_reason": "length", "token_ids": [9, 9]}]},
    {"tokens": [97, 1], "content": "a", "stop_type": "eos"},
]
REPLY_BYTES = changed_tree(REPLIES).map(lambda tree: json.dumps(tree).encode()) | changed_bytes(
    [json.dumps(reply).encode() for reply in REPLIES]
)


# Groups that are sent to the inbox.

GROUP_SIZE = GroupSize(samples=2, max_tokens=4)
_SENT = {"tokens": [97, 1], "finish_reason": "stop", "logprobs": [-0.5, -1e-6], "reward": 1.0}
_TEXT = {"text": "a", "finish_reason": "length"}
_GROUPS = {"groups": [{"dispatch": 3, "worker": "w", "responses": [_SENT, _TEXT]}] * 2}


def _groups(content: bytes, directory: Path) -> None:
    for group in read_groups(content, GROUP_SIZE):
        if isinstance(group, Refusal):
            assert 1 <= len(group.problems) <= SHOWN_PROBLEMS
            assert len(group.problems) <= group.count
            continue
        assert len(group.responses) <= MAX_RESPONSES
        for response in group.responses:
            assert len(response.tokens or ()) <= GROUP_SIZE.max_tokens
            assert response.reward is None or np.isfinite(response.reward)


# Model directories, snapshots and checkpoints.


@cache
def model_directory() -> Path:
    """A model of some ten thousand numbers with a tokenizer; lives as long as this process."""
    import atexit

    from transformers import LlamaConfig, LlamaForCausalLM

    from driftproof.tiny.tokenizers import character_tokenizer

    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    directory = place / "model"
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Changed:
    """One file of a directory with other content; None: removed."""

    file: str
    content: bytes | None = field(repr=True)


def changed_file(name: str) -> st.SearchStrategy[Changed]:
    @st.composite
    def changed(draw: st.DrawFn) -> Changed:
        content = (model_directory() / name).read_bytes()
        if name.endswith(".json") and draw(st.booleans()):
            return Changed(name, json.dumps(draw(changed_tree([json.loads(content)]))).encode())
        return Changed(name, draw(changed_bytes([content])))

    return changed()


DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
DESCRIPTION = st.sampled_from(DESCRIPTIONS).flatmap(changed_file)
WEIGHTS = changed_file("model.safetensors")


@contextmanager
def with_change(changed: Changed, directory: Path) -> Iterator[Path]:
    """The model directory with one file changed."""
    for file in model_directory().iterdir():
        shutil.copy(file, directory)
    if changed.content is None:
        (directory / changed.file).unlink()
    else:
        (directory / changed.file).write_bytes(changed.content)
    yield directory


def _inspect(changed: Changed, directory: Path) -> None:
    from driftproof.tasks.codec import Codec
    from driftproof.weights.models import inspect_model

    with with_change(changed, directory) as path:
        assert inspect_model(path).vocabulary > 0
        codec = Codec(path)
        assert codec.stop_ids


def _open_policy(changed: Changed, directory: Path) -> None:
    from driftproof.learner.policy import Policy

    with with_change(changed, directory) as path:
        Policy.open(path, device="cpu")


def _open_engine(changed: Changed, directory: Path) -> None:
    from driftproof.engines.embedded.engine import EmbeddedEngine

    with with_change(changed, directory) as path:
        EmbeddedEngine.from_directory(path, slots=2, device="cpu").close()


@cache
def _loaded_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_directory())


def _load_weights(changed: Changed, directory: Path) -> None:
    from driftproof.engines.embedded.load import load_weights

    with with_change(changed, directory) as path:
        before = {name: tensor.clone() for name, tensor in _loaded_model().state_dict().items()}
        try:
            load_weights(_loaded_model(), path)
        except (EngineError, FileNotFoundError):
            # All or none.
            assert all((before[name] == now).all() for name, now in _loaded_model().state_dict().items())
            raise
        finally:
            _loaded_model().load_state_dict(before)


INDEX = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "model-1.safetensors", "lm_head.weight": "b"}}


def _weight_index(content: bytes, directory: Path) -> None:
    from driftproof.engines.embedded.load import load_weights

    for shard in ("model-1.safetensors", "b"):
        shutil.copy(model_directory() / "model.safetensors", directory / shard)
    file_of(content, directory, "model.safetensors.index.json")
    load_weights(_loaded_model(), directory)


@cache
def _checkpoint() -> tuple[Any, Path]:
    """A learner, and the checkpoint that it wrote after a step."""
    from driftproof.learner.checkpoint import save_checkpoint
    from driftproof.learner.learner import Learner
    from driftproof.learner.policy import Policy
    from driftproof.learner.settings import LearnerSettings
    from driftproof.objectives import build
    from tests.groups import make_batch, random_groups

    learner = Learner(
        Policy.open(model_directory(), device="cpu"),
        build("asympo"),
        LearnerSettings(lr=1e-3),
        steps=10,
    )
    learner.train(make_batch(*random_groups(0)))
    return learner, save_checkpoint(model_directory().parent / "checkpoints", learner)


CHECKPOINT_FILES = ("state.json", "optimizer.safetensors", "model.safetensors")


@st.composite
def changed_checkpoint(draw: st.DrawFn) -> Changed:
    name = draw(st.sampled_from(CHECKPOINT_FILES))
    content = (_checkpoint()[1] / name).read_bytes()
    if name == "state.json" and draw(st.booleans()):
        return Changed(name, json.dumps(draw(changed_tree([json.loads(content)]))).encode())
    return Changed(name, draw(changed_bytes([content])))


def _load_checkpoint(changed: Changed, directory: Path) -> None:
    from driftproof.learner.checkpoint import load_checkpoint

    learner, whole = _checkpoint()
    for file in whole.iterdir():
        shutil.copy(file, directory)
    assert changed.content is not None
    (directory / changed.file).write_bytes(changed.content)
    load_checkpoint(directory, learner)
    assert isinstance(learner.step, int)
    # What was loaded can be trained with.
    from tests.groups import make_batch, random_groups

    learner.train(make_batch(*random_groups(0)))


def parsers() -> list[Parser]:
    """All doors."""
    toml_tree = changed_tree([tomllib.loads(path.read_text()) for path in RECIPES], TOML)
    return [
        Parser(
            name="recipe, bytes",
            parse=_recipe,
            refuses=(ConfigError,),
            inputs=changed_bytes([path.read_bytes() for path in RECIPES]),
        ),
        Parser(name="recipe, values", parse=_recipe_tree, refuses=(ConfigError,), inputs=toml_tree),
        Parser(
            name="overrides",
            parse=_overrides,
            refuses=(ConfigError,),
            inputs=st.lists(st.tuples(SETTING, VALUE), max_size=3).map(
                lambda pairs: [w for pair in pairs for w in pair]
            )
            | st.lists(SETTING | VALUE, max_size=4),
        ),
        *(
            Parser(name=f"rows of {name}", parse=partial(_rows, name), refuses=(TaskError,), inputs=rows_inputs(name))
            for name in ROWS
        ),
        Parser(
            name="rows in Parquet",
            parse=_parquet,
            refuses=(TaskError,),
            inputs=st.deferred(lambda: changed_bytes([parquet_file()])),
        ),
        Parser(
            name="fields of a task",
            parse=_task_fields,
            refuses=(TaskError,),
            inputs=st.tuples(st.sampled_from(sorted(set(tasks.TASKS) - {"reasoning_gym"})), _fields()),
        ),
        Parser(
            name="replies",
            parse=_reply,
            refuses=(ReplyError,),
            inputs=st.tuples(st.sampled_from(list(Dialect)), st.booleans(), st.booleans(), REPLY_BYTES),
        ),
        Parser(
            name="groups for the inbox",
            parse=_groups,
            refuses=(BodyError,),
            inputs=changed_bytes([json.dumps(_GROUPS).encode()])
            | changed_tree([_GROUPS]).map(lambda tree: json.dumps(tree).encode()),
        ),
        Parser(name="model description", parse=_inspect, refuses=(ModelError,), inputs=DESCRIPTION, slow=True),
        Parser(
            name="policy",
            parse=_open_policy,
            refuses=(ModelError,),
            slow=True,
            inputs=st.one_of(WEIGHTS, changed_file("config.json")),
        ),
        Parser(
            name="engine",
            parse=_open_engine,
            refuses=(EngineError,),
            slow=True,
            inputs=st.one_of(WEIGHTS, changed_file("config.json")),
        ),
        Parser(name="snapshot", parse=_load_weights, refuses=(EngineError, FileNotFoundError), inputs=WEIGHTS),
        Parser(
            name="index of shards",
            parse=_weight_index,
            refuses=(EngineError, FileNotFoundError),
            inputs=changed_bytes([json.dumps(INDEX).encode()])
            | changed_tree([INDEX]).map(lambda t: json.dumps(t).encode()),
        ),
        Parser(
            name="checkpoint",
            parse=_load_checkpoint,
            refuses=(CheckpointError,),
            inputs=changed_checkpoint(),
            slow=True,
        ),
    ]


def _fields() -> st.SearchStrategy[dict[str, Any]]:
    """Fields of tasks; none of them is a file that is there, or a large count."""
    names = st.sampled_from(("path", "digits", "heldout", "seed", "verifier", "shots", "template", "system", "x"))
    small = st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | words | st.lists(words, max_size=2)
    return st.dictionaries(names, small, max_size=3)
