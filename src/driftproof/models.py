"""Hugging Face model directories, looked at before anything is loaded.

Guarantees: a directory without configuration, safetensors weights or tokenizer, or whose tokenizer is larger than the
model's vocabulary, is refused with a sentence.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftproof.types import Prompt


class ModelError(ValueError):
    """A model directory that cannot be used; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What can be known of a model directory without its weights."""

    path: Path
    context: int
    """Most tokens of prompt and response together."""
    vocabulary: int
    fingerprint: str
    """Hash of configuration and tokenizer: equal for all snapshots of a run."""


def inspect_model(path: Path) -> ModelInfo:
    """Check a model directory without opening its weights.

    Raises:
        ModelError: not a directory, configuration, weights or tokenizer missing, or vocabularies that do not fit.
    """
    from transformers import AutoConfig

    if not path.is_dir():
        raise ModelError(
            f"model directory {path} does not exist; give a Hugging Face model directory, "
            f"or make a tiny one with `driftproof tiny-model {path}`"
        )
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} has no config.json; it is not a Hugging Face model directory")
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{path} has no *.safetensors weights (pickled weights are never opened; convert them first)")
    try:
        config = AutoConfig.from_pretrained(path)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(f"{path}/config.json is not a configuration transformers can read: {error}") from error
    tokenizer = load_tokenizer(path)
    text_config = config.get_text_config()
    if len(tokenizer) > text_config.vocab_size:
        raise ModelError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model only {text_config.vocab_size}; "
            "they do not belong together"
        )
    return ModelInfo(
        path=path,
        context=int(getattr(text_config, "max_position_embeddings", 0) or 1 << 30),
        vocabulary=int(text_config.vocab_size),
        fingerprint=_fingerprint(path),
    )


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model directory.

    Raises:
        ModelError: there is none, or it names no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise ModelError(f"{path} has no tokenizer (tokenizer.json); save the model's tokenizer into the directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(f"{path}: the tokenizer cannot be read: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no end-of-sequence token, so no response could ever stop")
    return tokenizer


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: through the chat template where the tokenizer has one, else the text as it is."""
    if tokenizer.chat_template is None:
        return list(tokenizer.encode(_plain_text(prompt)))
    encoded = tokenizer.apply_chat_template(_messages(prompt), add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def render_prompt(tokenizer: Any, prompt: Prompt) -> str:
    """The text that `encode_prompt` reads, without the token that every text begins with."""
    if tokenizer.chat_template is None:
        return _plain_text(prompt)
    text = tokenizer.apply_chat_template(_messages(prompt), add_generation_prompt=True, tokenize=False)
    return str(text).removeprefix(tokenizer.bos_token or "")


def _plain_text(prompt: Prompt) -> str:
    return f"{prompt.system}\n{prompt.text}" if prompt.system else prompt.text


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": prompt.text}]


def stop_ids(tokenizer: Any, model_path: Path) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's end of sequence and those of the generation configuration."""
    from transformers import GenerationConfig

    ids = {int(tokenizer.eos_token_id)}
    if (model_path / "generation_config.json").is_file():
        configured = GenerationConfig.from_pretrained(model_path).eos_token_id
        ids.update(configured if isinstance(configured, list) else [] if configured is None else [configured])
    return tuple(sorted(ids))


def fingerprint_weights(path: Path) -> str:
    """Hash of a model directory's configuration, tokenizer and weights."""
    digest = hashlib.sha256(_fingerprint(path).encode())
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        file = path / name
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()[:16]


def checkpoint_activations(model: Any) -> None:
    """Let the layers of a model in eval mode keep their inputs alone and compute the rest again for their gradients."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        # A layer recomputes in train mode only; what is inside it stays in eval mode, without dropout.
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
