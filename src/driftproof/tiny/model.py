"""A base policy that a laptop's CPU can make and train: about 0.6 M parameters, in a plain Hugging Face directory.

Guarantees: the directory is complete or absent, `AutoTokenizer` and `AutoModelForCausalLM` open it, and the result
depends on architecture, tokenizer, task, accuracy and seed alone (to float rounding, which varies with the number of
threads). A trained model has seen noisy demonstrations of the training split of its task, two-digit addition if no
other is named, and stops learning at a chosen share of right sampled answers, a third if no other is chosen.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from driftproof.errors import ConfigError
from driftproof.tasks import Task, build
from driftproof.tiny.supervised import RIGHT, Progress, score_answers, train_until
from driftproof.tiny.tokenizers import CHARACTERS, CONTEXT, TOKENIZERS, TokenizerKind

Architecture = Literal["qwen3", "llama"]

REPORT_FILE = "tiny_model.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModelReport:
    """A tiny model, how it was made, and its accuracies on the held-out prompts of its task."""

    path: Path
    architecture: str
    tokenizer: str
    task: str
    task_fields: dict[str, Any]
    """Fields of the task that were given; the others had their defaults."""
    accuracy: float
    """Sampled accuracy at which training was to stop."""
    seed: int
    trained: bool
    parameters: int
    """Tied embeddings counted once."""
    steps: int
    """Supervised optimizer updates."""
    seconds: float
    sampled_accuracy: float
    """Mean probability of sampling exactly the answer and the stop token at temperature 1."""
    greedy_accuracy: float
    """Share of prompts whose greedy response is exactly the answer."""


def make_tiny_model(
    directory: Path,
    *,
    architecture: Architecture = "qwen3",
    tokenizer: TokenizerKind = "characters",
    task: str = "arithmetic",
    task_fields: Mapping[str, Any] | None = None,
    accuracy: float = 0.33,
    train: bool = True,
    seed: int = 0,
    exist_ok: bool = False,
    progress: Progress | None = None,
) -> TinyModelReport:
    """Make a tiny model in `directory`; with `exist_ok`, one made there before with the same settings is kept.

    Training stops at the first measurement of sampled accuracy on held-out prompts that is at least `accuracy`.

    Raises:
        TaskError: an unknown `task`, or `task_fields` it does not take.
        ConfigError: a name or an `accuracy` that is not valid; a task without held-out prompts, or one that the
            tokenizer cannot write; `directory` holds something else or cannot be written; `accuracy` is not reached.
    """
    for what, name, kind in (("architecture", architecture, Architecture), ("tokenizer", tokenizer, TokenizerKind)):
        if name not in get_args(kind):
            raise ConfigError(f"{what} is {name!r}; valid are: {', '.join(get_args(kind))}")
    if not 0 < accuracy < RIGHT:
        valid = f"above 0 and below {RIGHT}, the share of demonstrations that are right"
        raise ConfigError(f"accuracy is {accuracy}; it must be {valid}")
    settings: dict[str, Any] = {
        "architecture": architecture,
        "tokenizer": tokenizer,
        "task": task,
        # As they will be read back.
        "task_fields": json.loads(json.dumps(dict(task_fields or {}), default=str)),
        "accuracy": accuracy,
        "seed": seed,
        "trained": train,
    }
    if existing := _existing(directory, settings, exist_ok):
        return existing

    start = time.perf_counter()
    prompts = build(task, **task_fields or {})
    tokenizer_object = TOKENIZERS[tokenizer]()
    _check_prompts(prompts, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _random_model(architecture, tokenizer_object)
        steps = train_until(accuracy, model, tokenizer_object, prompts, progress) if train else 0
    scores = score_answers(model, tokenizer_object, prompts.heldout)
    report = TinyModelReport(
        path=directory,
        **settings,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=steps,
        seconds=time.perf_counter() - start,
        sampled_accuracy=scores.probability.mean().item(),
        greedy_accuracy=scores.greedy.float().mean().item(),
    )
    _save(directory, model, tokenizer_object, report)
    return report


def _random_model(architecture: Architecture, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return AutoModelForCausalLM.from_config(config)


def _check_prompts(task: Task, tokenizer: TokenizerKind) -> None:
    if not task.heldout:
        raise ConfigError(f"task {task.name!r} has no held-out prompts to measure accuracy on; hold some out")
    for prompt in [*task.train, *task.heldout] if tokenizer == "characters" else []:
        if strange := set(prompt.text + prompt.answer).difference(CHARACTERS):
            raise ConfigError(
                f"task {task.name!r}, prompt {prompt.text[:60]!r}: the tokenizer 'characters' cannot write "
                f"{min(strange)!r}; use the tokenizer 'bytes'"
            )


def _existing(directory: Path, wanted: dict[str, Any], exist_ok: bool) -> TinyModelReport | None:
    """The report of the model that is there; None when the place is free."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        existing = next(parent for parent in directory.absolute().parents if parent.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise ConfigError(f"{directory} cannot be written: {existing} is no writable directory")
        return None
    if not (directory / REPORT_FILE).is_file():
        raise ConfigError(f"{directory} exists and is no tiny model; choose another directory or remove it")
    if not exist_ok:
        raise ConfigError(f"{directory} holds a tiny model already; choose another directory or remove it")
    record = json.loads((directory / REPORT_FILE).read_text())
    found = {name: record.get(name) for name in wanted}
    if found != wanted:
        other, this = (", ".join(f"{name} {value}" for name, value in each.items()) for each in (found, wanted))
        raise ConfigError(f"{directory} holds another tiny model ({other}), not {this}")
    return TinyModelReport(**record | {"path": directory})


def _save(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, report: TinyModelReport) -> None:
    """Write beside `directory`, then rename."""
    beside = directory.with_name(f".{directory.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        record = asdict(report) | {"path": directory.name}
        (beside / REPORT_FILE).write_text(json.dumps(record, indent=2) + "\n")
        beside.replace(directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
