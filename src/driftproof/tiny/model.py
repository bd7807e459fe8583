"""A base policy that a laptop's CPU can make and train: about 0.6 M parameters, in a plain Hugging Face directory.

Guarantees: the directory is complete or absent, `AutoTokenizer` and `AutoModelForCausalLM` open it, and the result
depends on architecture, tokenizer, task, accuracy and seed alone (to float rounding, which varies with the number of
threads). A trained model has seen the training split of its task, two-digit addition if no other is named, with noisy
demonstrations, and stops learning at a chosen share of right sampled answers, a third if no other is chosen, so that
reinforcement learning has something to find and something to improve.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR

from driftproof.errors import ConfigError
from driftproof.tasks import Task, build
from driftproof.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

Architecture = Literal["qwen3", "llama"]
TokenizerKind = Literal["characters", "bytes"]
Progress = Callable[[int, float], None]
"""Called with the step and the sampled accuracy on held-out prompts."""

CONTEXT = 16_384
"""Most tokens of a sequence."""
PAD, EOS = "<pad>", "<eos>"
"""The special tokens, ids 0 and 1."""
REPORT_FILE = "tiny_model.json"
"""In the model directory: the `TinyModelReport` it was made with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModelReport:
    """What was made."""

    path: Path
    """The model directory."""
    architecture: str
    tokenizer: str
    task: str
    """Its prompts were demonstrated, and its held-out prompts measure the accuracies below."""
    task_fields: dict[str, Any]
    """Those that were given; the others had their defaults."""
    accuracy: float
    """Sampled accuracy at which training was to stop."""
    seed: int
    trained: bool
    """False: random weights."""
    parameters: int
    """Tied embeddings counted once."""
    steps: int
    """Supervised optimizer updates; 0 without training."""
    seconds: float
    """Wall time."""
    sampled_accuracy: float
    """Mean probability, over held-out prompts, of sampling exactly the answer and the stop token at temperature 1."""
    greedy_accuracy: float
    """Share of held-out prompts whose greedy response is exactly the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScores:
    """How well a policy knows the answers of N prompts; exact, nothing is sampled."""

    probability: Tensor
    """float32 [N]: probability that a response sampled at temperature 1 is the answer and the stop token."""
    greedy: Tensor
    """bool [N]: whether the greedy response is the answer and the stop token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demonstrations:
    """N prompts, each followed by its answer and the stop token, padded on the right to T tokens."""

    tokens: Tensor
    """int64 [N, T]."""
    answer: Tensor
    """bool [N, T], true where a token belongs to the answer or is its stop token."""


DIGITS = "0123456789"
RIGHT = 0.7
"""About the share of demonstrations whose answer is right; the others have digits replaced by random ones."""
BATCH = 128
MATRIX_RATE = 8e-3
"""Learning rate of the matrices within the layers; an update's root mean square is 0.2 of it."""
REST_RATE = 4e-3
"""Learning rate of the embeddings and the norms."""
WARMUP = 10
"""Steps."""
MEASURE_EVERY = 5
"""Steps."""
MAX_STEPS = 2000
"""Several times what any seed needs."""


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
        ConfigError: an unknown architecture or tokenizer; an `accuracy` that the demonstrations do not allow;
            a task without held-out prompts, or one that the tokenizer cannot write; `directory` holds something else or
            cannot be written; or training does not reach `accuracy`.
    """
    _check_name("architecture", architecture, get_args(Architecture))
    _check_name("tokenizer", tokenizer, get_args(TokenizerKind))
    if not 0 < accuracy < RIGHT:
        raise ConfigError(
            f"accuracy is {accuracy}; it must be above 0 and below {RIGHT}, the share of demonstrations that are right"
        )
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
    tokenizer_object = _TOKENIZERS[tokenizer]()
    _check_prompts(prompts, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _random_model(architecture, tokenizer_object)
        steps = _train(model, tokenizer_object, prompts, accuracy, progress) if train else 0
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


def score_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> AnswerScores:
    """Score the answers of `prompts` by one forward pass over each prompt's text followed by its answer.

    A response counts when it is the answer's tokens and then the stop token; another spelling of the same answer is
    not counted. The model's mode (train or eval) is left as it is.
    """
    return _score(model, _demonstrations(tokenizer, prompts))


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One id per printable ASCII character or newline. Encoding any other character raises, it is never dropped."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    # Without an unknown token in the vocabulary a word-level model refuses what it cannot write.
    backend = Tokenizer(models.WordLevel(_vocabulary(_CHARACTERS), unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return _wrap(backend)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte of UTF-8: byte b has id b + 2. Every text can be written and is decoded exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # Byte-level tokenizers write a byte that prints as itself, and the k-th of the others as the character 256 + k.
    printable = {ord(c) for c in pre_tokenizers.ByteLevel.alphabet()} & set(range(256))
    others = iter(range(256, 512))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    backend = Tokenizer(models.BPE(vocab=_vocabulary(letters), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrap(backend)


_CHARACTERS = [*map(chr, range(32, 127)), "\n"]
_TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "characters": character_tokenizer,
    "bytes": byte_tokenizer,
}


def _vocabulary(letters: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate([PAD, EOS, *letters])}


def _wrap(backend: object) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        # A dataset that contains the text "<eos>" does not write the stop token.
        split_special_tokens=True,
    )


def _random_model(architecture: Architecture, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config_class, model_class = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[architecture]
    config = config_class(
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
    return model_class(config)


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    target: float,
    progress: Progress | None,
) -> int:
    """Train on noisy demonstrations until the sampled accuracy is `target`; return the number of steps."""
    demonstrations, measured = _demonstrations(tokenizer, task.train), _demonstrations(tokenizer, task.heldout)
    digits, noise = torch.tensor(tokenizer.convert_tokens_to_ids(list(DIGITS))), _noise(task.train)
    optimizers = _optimizers(model)
    schedules = [LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP)) for optimizer in optimizers]
    accuracy = 0.0
    for step in range(1, MAX_STEPS + 1):
        rows = torch.randint(len(task.train), (BATCH,))
        answer = demonstrations.answer[rows]
        tokens = _with_noise(demonstrations.tokens[rows], answer, digits, noise)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        functional.cross_entropy(logits[answer[:, 1:]], tokens[answer]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % MEASURE_EVERY == 0:
            accuracy = _score(model, measured).probability.mean().item()
            if progress:
                progress(step, accuracy)
            if accuracy >= target:
                return step
    raise ConfigError(
        f"sampled accuracy is {accuracy:.2g} after {MAX_STEPS} steps, not {target}; try an easier task, a lower "
        "accuracy or another seed"
    )


def _optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Orthogonal momentum for the matrices within the layers, AdamW for the rest.

    AdamW alone takes two to four times the demonstrations, and on some seeds stays for long where it knows all but
    the units.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    return [
        _OrthogonalMomentum(matrices, MATRIX_RATE),
        torch.optim.AdamW(rest, lr=REST_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


class _OrthogonalMomentum(torch.optim.Optimizer):
    """Muon: Nesterov momentum, each matrix' update replaced by the nearest orthogonal matrix.

    In float32, matrices of equal shape together: `torch.optim.Muon` computes in bfloat16, which a processor without
    instructions for it emulates, an order of magnitude slower.
    """

    def __init__(self, matrices: Sequence[Tensor], lr: float, momentum: float = 0.95) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        super().__init__([{"params": group} for group in by_shape.values()], {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            matrices, momentum = group["params"], group["momentum"]
            gradients = torch.stack([matrix.grad for matrix in matrices])
            average = self.state[matrices[0]].setdefault("average", torch.zeros_like(gradients))
            average.lerp_(gradients, 1 - momentum)
            updates = _orthogonal(gradients.lerp(average, momentum))
            # An orthogonal matrix has root mean square 1/sqrt(longer side); 0.2 is what AdamW's updates have.
            scale = 0.2 * max(gradients.shape[1:]) ** 0.5
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.sub_(update, alpha=group["lr"] * scale)


def _orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest orthogonal matrix of each of `matrices` [K, M, N]: singular values of about 0.7 to 1.2.

    Five steps of a Newton-Schulz iteration; its coefficients, from Muon's authors, trade accuracy for speed.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x: Tensor = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide is matrices else x.mT


def _score(model: PreTrainedModel, demonstrations: _Demonstrations) -> AnswerScores:
    targets, answer = demonstrations.tokens[:, 1:], demonstrations.answer[:, 1:]
    with torch.inference_mode():
        logits = model(input_ids=demonstrations.tokens[:, :-1], use_cache=False).logits.float()
        logprobs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        return AnswerScores(
            probability=logprobs.where(answer, 0).sum(1).exp(),
            greedy=((logits.argmax(-1) == targets) | ~answer).all(1),
        )


def _noise(prompts: Sequence[Prompt]) -> float:
    """The share of digits to replace so that about `RIGHT` of the answers stay as they are, to two significant digits.

    A fixed share would leave next to nothing of long answers right.
    """
    digits = fmean(sum(character in DIGITS for character in prompt.answer) for prompt in prompts)
    if digits == 0:
        return 0.0
    # A random digit is the right one a tenth of the time.
    return min(1.0, float(f"{(1 - RIGHT ** (1 / digits)) / 0.9:.2g}"))


def _with_noise(tokens: Tensor, answer: Tensor, digits: Tensor, noise: float) -> Tensor:
    """Replace a share `noise` of the answers' digits by random ones; the stop tokens stay."""
    noisy = answer & torch.isin(tokens, digits) & (torch.rand(tokens.shape) < noise)
    return torch.where(noisy, digits[torch.randint(len(digits), tokens.shape)], tokens)


def _demonstrations(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> _Demonstrations:
    texts = [torch.tensor(ids) for ids in tokenizer([p.text for p in prompts])["input_ids"]]
    answers = [
        torch.tensor([*ids, tokenizer.eos_token_id])
        for ids in tokenizer([p.answer for p in prompts], add_special_tokens=False)["input_ids"]
    ]
    rows = [torch.cat(pair) for pair in zip(texts, answers, strict=True)]
    marks = [torch.arange(len(row)) >= len(text) for text, row in zip(texts, rows, strict=True)]
    return _Demonstrations(
        # Causal attention never looks at what comes later, so that padding on the right needs no attention mask.
        tokens=pad_sequence(rows, batch_first=True, padding_value=tokenizer.eos_token_id),
        answer=pad_sequence(marks, batch_first=True, padding_value=False),
    )


def _check_name(what: str, name: str, valid: Sequence[str]) -> None:
    if name not in valid:
        raise ConfigError(f"{what} is {name!r}; valid are: {', '.join(valid)}")


def _check_prompts(task: Task, tokenizer: TokenizerKind) -> None:
    if not task.heldout:
        raise ConfigError(f"task {task.name!r} has no held-out prompts to measure accuracy on; hold some out")
    if tokenizer == "bytes":
        return
    for prompt in [*task.train, *task.heldout]:
        if strange := set(prompt.text + prompt.answer).difference(_CHARACTERS):
            raise ConfigError(
                f"task {task.name!r}, prompt {prompt.text[:60]!r}: the tokenizer 'characters' cannot write "
                f"{min(strange)!r}; use the tokenizer 'bytes'"
            )


def _existing(directory: Path, wanted: dict[str, Any], exist_ok: bool) -> TinyModelReport | None:
    """The report of the model that is there; None when the place is free."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        _check_writable(directory)
        return None
    if not (directory / REPORT_FILE).is_file():
        raise ConfigError(f"{directory} exists and is no tiny model; choose another directory or remove it")
    if not exist_ok:
        raise ConfigError(f"{directory} holds a tiny model already; choose another directory or remove it")
    record = json.loads((directory / REPORT_FILE).read_text())
    found = {name: record.get(name) for name in wanted}
    if found != wanted:
        raise ConfigError(f"{directory} holds another tiny model ({_spell(found)}), not {_spell(wanted)}")
    return TinyModelReport(**record | {"path": directory})


def _spell(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _check_writable(directory: Path) -> None:
    existing = next(parent for parent in directory.absolute().parents if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise ConfigError(f"{directory} cannot be written: {existing} is no writable directory")


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
