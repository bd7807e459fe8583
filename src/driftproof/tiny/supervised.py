"""Supervised training on noisy demonstrations, until a chosen share of sampled answers is right.

So a base policy has something to find and something to improve by reinforcement learning. The optimizer is Muon for the
matrices within the layers, AdamW for the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from driftproof.errors import ConfigError
from driftproof.tasks import Task
from driftproof.types import Prompt

Progress = Callable[[int, float], None]
"""Called with the step and the sampled accuracy on held-out prompts."""

DIGITS = "0123456789"
RIGHT = 0.7
"""Share of demonstrations whose answer is right, nearly; the others have digits replaced by random ones."""
BATCH = 128
MATRIX_RATE = 8e-3
"""Learning rate of the matrices within the layers; an update's root mean square is 0.2 of it."""
REST_RATE = 4e-3
WARMUP_STEPS = 10
STEPS_PER_MEASUREMENT = 5
MAX_STEPS = 2000
"""Most steps, several times as many as any seed needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScores:
    """How well a policy knows the answers of N prompts; exact, nothing is sampled."""

    probability: Tensor
    """float32 [N]: that a response sampled at temperature 1 is the answer and the stop token."""
    greedy: Tensor
    """bool [N]: whether the greedy response is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrations:
    """N prompts, each followed by its answer and the stop token, padded on the right to T tokens."""

    tokens: Tensor
    answer: Tensor
    """bool [N, T], true where a token belongs to the answer or is its stop token."""


def train_until(
    target: float, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, progress: Progress | None
) -> int:
    """Train on noisy demonstrations until the sampled accuracy is `target`; return the number of steps."""
    demonstrations = demonstrate(tokenizer, task.train)
    digits, noise = torch.tensor(tokenizer.convert_tokens_to_ids(list(DIGITS))), noise_of(task.train)
    optimizers = optimizers_of(model)
    schedules = [LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS)) for optimizer in optimizers]
    accuracy = 0.0
    for step in range(1, MAX_STEPS + 1):
        rows = torch.randint(len(task.train), (BATCH,))
        answer = demonstrations.answer[rows]
        tokens = with_noise(demonstrations.tokens[rows], answer, digits, noise)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        functional.cross_entropy(logits[answer[:, 1:]], tokens[answer]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % STEPS_PER_MEASUREMENT == 0:
            accuracy = score_answers(model, tokenizer, task.heldout).probability.mean().item()
            if progress:
                progress(step, accuracy)
            if accuracy >= target:
                return step
    raise ConfigError(
        f"sampled accuracy is {accuracy:.2g} after {MAX_STEPS} steps, not {target}; try an easier task, a lower "
        "accuracy or another seed"
    )


def score_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> AnswerScores:
    """Score the answers of `prompts` by one forward pass over each prompt's text followed by its answer.

    Another spelling of the same answer is not counted. The model's mode (train or eval) is left as it is.
    """
    demonstrations = demonstrate(tokenizer, prompts)
    targets, answer = demonstrations.tokens[:, 1:], demonstrations.answer[:, 1:]
    with torch.inference_mode():
        logits = model(input_ids=demonstrations.tokens[:, :-1], use_cache=False).logits.float()
        logprobs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        return AnswerScores(
            probability=logprobs.where(answer, 0).sum(1).exp(),
            greedy=((logits.argmax(-1) == targets) | ~answer).all(1),
        )


def noise_of(prompts: Sequence[Prompt]) -> float:
    """The share of digits to replace, to two significant digits, so that about `RIGHT` of the answers stay right."""
    digits = fmean(sum(character in DIGITS for character in prompt.answer) for prompt in prompts)
    if digits == 0:
        return 0.0
    # A random digit is the right one a tenth of the time.
    return min(1.0, float(f"{(1 - RIGHT ** (1 / digits)) / 0.9:.2g}"))


def with_noise(tokens: Tensor, answer: Tensor, digits: Tensor, noise: float) -> Tensor:
    """Replace a share `noise` of the answers' digits by random ones; the stop tokens stay."""
    noisy = answer & torch.isin(tokens, digits) & (torch.rand(tokens.shape) < noise)
    return torch.where(noisy, digits[torch.randint(len(digits), tokens.shape)], tokens)


def demonstrate(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> Demonstrations:
    texts = [torch.tensor(ids) for ids in tokenizer([p.text for p in prompts])["input_ids"]]
    answer_ids = tokenizer([p.answer for p in prompts], add_special_tokens=False)["input_ids"]
    answers = [torch.tensor([*ids, tokenizer.eos_token_id]) for ids in answer_ids]
    rows = [torch.cat(pair) for pair in zip(texts, answers, strict=True)]
    marks = [torch.arange(len(row)) >= len(text) for text, row in zip(texts, rows, strict=True)]
    return Demonstrations(
        # Causal attention never looks at what comes later, so that padding on the right needs no attention mask.
        tokens=pad_sequence(rows, batch_first=True, padding_value=tokenizer.eos_token_id),
        answer=pad_sequence(marks, batch_first=True, padding_value=False),
    )


def optimizers_of(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Both optimizers; AdamW alone takes two to four times the demonstrations, and on some seeds is stuck for long."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    adamw = torch.optim.AdamW(rest, lr=REST_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [Muon(matrices, MATRIX_RATE), adamw]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, each matrix' update replaced by the nearest orthogonal matrix.

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
            updates = orthogonal(gradients.lerp(average, momentum))
            # An orthogonal matrix has root mean square 1/sqrt(longer side); 0.2 is what AdamW's updates have.
            scale = 0.2 * max(gradients.shape[1:]) ** 0.5
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.sub_(update, alpha=group["lr"] * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the nearest orthogonal matrix of each of `matrices` [K, M, N]: singular values of about 0.7 to 1.2.

    Five steps of a Newton-Schulz iteration; its coefficients, from Muon's authors, trade accuracy for speed.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x: Tensor = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide is matrices else x.mT
