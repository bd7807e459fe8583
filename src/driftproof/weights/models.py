"""Hugging Face model directories, looked at before anything is loaded.

Guarantees: a directory without configuration, safetensors weights or tokenizer, or whose tokenizer is larger than the
model's vocabulary, is refused with a sentence, whatever its files hold; no code in it is run, no pickle opened, and
nothing is fetched from elsewhere.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from driftproof.errors import DamageError, ModelError
from driftproof.weights.files import TEMPLATES, other_files, weight_files

UNTRUSTED: dict[str, bool] = {"trust_remote_code": False, "local_files_only": True}
"""Options of everything that opens a model directory; without them transformers asks the terminal to run its code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts about a model directory that need no weights."""

    path: Path
    context: int
    """Most tokens of prompt and response together."""
    context_note: str = ""
    """Why it is less than the configuration's, for the sentence that names it."""
    vocabulary: int
    fingerprint: str
    """Hash of all that determines tokens and how they are computed, weights apart: equal for all snapshots of a run."""


def inspect_model(path: Path) -> ModelInfo:
    """Check a model directory without opening its weights.

    Raises:
        ModelError: something is missing, cannot be read, or does not fit the rest.
    """
    from transformers import AutoConfig

    if not path.is_dir():
        how = (
            "give a Hugging Face model directory, a model of the hub by OWNER/NAME, or make a tiny one with "
            f"`driftproof tiny-model {path}`"
        )
        raise ModelError(f"model directory {path} does not exist; {how}")
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} has no config.json; it is not a Hugging Face model directory")
    if (path / "adapter_config.json").is_file():
        raise ModelError(f"{path} is an adapter, not a model; merge it into its base model and save that")
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{path} has no *.safetensors weights (pickled weights are never opened; convert them first)")
    try:
        weights, _ = weight_files(path), other_files(path)
    except (OSError, DamageError) as error:
        raise ModelError(str(error)) from error
    if missing := [file.name for file in weights if not file.is_file()]:
        raise ModelError(f"{path} has no {missing[0]}, which its index of weights names; download or copy it again")
    with readable(f"{path}/config.json is not a configuration transformers can read"):
        text_config = AutoConfig.from_pretrained(path, **UNTRUSTED).get_text_config()
        vocabulary = int(text_config.vocab_size)
        context, longest = longest_context(text_config) or 1 << 30, getattr(text_config, "max_position_embeddings", 0)
    if context < 2:
        raise ModelError(f"{path}/config.json: max_position_embeddings is {context}; it must be at least 2")
    tokenizer = load_tokenizer(path)
    # Special tokens beyond the vocabulary, as for images, are never written; a prompt that has one is refused.
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special}
    if any(index >= vocabulary and index not in special for index in (len(tokenizer) - 1, *added)):
        sizes = f"the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}"
        raise ModelError(f"{path}: {sizes}; they do not belong together")
    note = " (the original one: under longrope a longer text changes the positions before)" if context < longest else ""
    return ModelInfo(
        path=path, context=context, context_note=note, vocabulary=vocabulary, fingerprint=_fingerprint(path)
    )


@contextmanager
def readable(problem: str) -> Iterator[None]:
    """Turn any error of the block into a `ModelError` that begins with `problem`."""
    # Transformers and its tokenizers raise nothing narrower for files that are not in order.
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise ModelError(f"{problem}: {error or type(error).__name__}") from error


def is_panic(error: BaseException) -> bool:
    """Whether code in Rust, such as a tokenizer's regular expression, gave up: an exception outside of `Exception`."""
    return type(error).__name__ == "PanicException"


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model directory; a ModelError without one that names an end-of-sequence token."""
    from transformers import AutoTokenizer

    if not _has_tokenizer(path):
        raise ModelError(f"{path} has no tokenizer (tokenizer.json); save the model's tokenizer into the directory")
    with readable(f"{path}: the tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(path, **UNTRUSTED)
        eos_id = tokenizer.eos_token_id
    if eos_id is None:
        raise ModelError(f"{path}: the tokenizer has no end-of-sequence token, so no response could ever stop")
    return tokenizer


def _has_tokenizer(path: Path) -> bool:
    return any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))


def stop_ids(tokenizer: Any, model_path: Path) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's end of sequence, and those at which `generate` of transformers ends,
    which are the generation configuration's, or, where there is none, the model's."""
    ids = {int(tokenizer.eos_token_id)}
    for file in (model_path / "generation_config.json", model_path / "config.json"):
        if not file.is_file():
            continue
        with readable(f"{file} is not a configuration transformers can read"):
            config = json.loads(file.read_bytes())
            configured = config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
        more = configured if isinstance(configured, list) else [] if configured is None else [configured]
        if wrong := [value for value in more if type(value) is not int or not 0 <= value < 2**31]:
            raise ModelError(f"{file}: eos_token_id holds {wrong[0]!r}, which is no token id")
        ids.update(more)
        if more:
            break
    return tuple(sorted(ids))


def ids_without_text(model_path: Path) -> tuple[int, ...]:
    """Token ids of a model that its tokenizer does not know: those that only pad the vocabulary."""
    if not _has_tokenizer(model_path):
        return ()
    known = set(load_tokenizer(model_path).get_vocab().values())
    return tuple(index for index in range(read_vocabulary(model_path)) if index not in known)


def read_vocabulary(model_path: Path) -> int:
    """Token ids that a model can read and write, by its configuration."""
    from transformers import AutoConfig

    with readable(f"{model_path}/config.json is not a configuration transformers can read"):
        return int(AutoConfig.from_pretrained(model_path, **UNTRUSTED).get_text_config().vocab_size)


def fingerprint_weights(path: Path, fingerprint: str = "") -> str:
    """Hash of a model directory's weights and its `fingerprint`: of configuration, tokenizer and chat template."""
    digest = hashlib.sha256((fingerprint or _fingerprint(path)).encode())
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def earlier_fingerprint(path: Path) -> str:
    """The fingerprint of a model as it was when it did not cover the chat template."""
    files = [file for name in ("config.json", "tokenizer.json") if (file := path / name).is_file()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


_TOKENS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files beside `*.model` and further chat templates that determine the tokens of a text."""


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    for name, file in other_files(path).items():
        content = file.read_bytes()
        if name in ("config.json", "generation_config.json"):
            with readable(f"{path / name} is not a configuration transformers can read"):
                config = json.loads(content)
                # A snapshot may hold its weights in another type than the base model.
                kept = _without_dtype(config) if name == "config.json" else config.get("eos_token_id")
                content = json.dumps(kept, sort_keys=True).encode()
        elif not (name in _TOKENS or name.endswith(".model") or name.startswith(TEMPLATES)):
            continue
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def _without_dtype(config: Any) -> Any:
    """A configuration, and those within it, without the type of its weights."""
    if not isinstance(config, dict):
        return config
    return {key: _without_dtype(value) for key, value in config.items() if key not in ("dtype", "torch_dtype")}


def longest_context(config: Any) -> int | None:
    """Most tokens of prompt and response together by a text configuration; None where it names no limit.

    Under longrope one position beyond the original context changes those of all tokens before it, so that neither a
    cache nor other responses of a batch would hold: the original context is the limit.
    """
    longest: int | None = getattr(config, "max_position_embeddings", None)
    of_layers = getattr(config, "rope_parameters", None) or {}
    for rope in (of_layers, *of_layers.values()):
        if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            longest = min(filter(None, (original, longest)), default=None)
    return longest or None


ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Layers of attention, as configurations call them."""
UNLIMITED = 1 << 30


def attention_reach(config: Any) -> int:
    """Tokens up to which every layer attends to all before, by a text configuration; 0 where not all layers attend."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - ATTENTION:
        return 0
    slides = kinds - {"full_attention"} if kinds else getattr(config, "use_sliding_window", True)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")] if slides else []
    return min((window for window in windows if window), default=0 if kinds and slides else UNLIMITED)


def checkpoint_activations(model: Any) -> None:
    """Let the layers of a model keep their inputs alone and compute the rest again for their gradients.

    The model stays in eval mode, as it is: transformers' own way needs train mode, which wakes dropout.

    Raises:
        ModelError: the model has no layers that transformers could compute again.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers whose activations could be computed again; set "
            "--learner.gradient_checkpointing false"
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
