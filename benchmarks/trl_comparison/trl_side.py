"""Post-train a tiny model with TRL's GRPOTrainer and measure its steps/s and its time to a sampled accuracy.

    python benchmarks/trl_comparison/trl_side.py --model DIR --seed 0 --lr 5e-4 --steps 200 --output trl.json

One optimizer step takes 16 prompts x 8 responses at temperature 1 and the gradient of one batch of 128. The settings
are those under which TRL is fastest here; what they change besides speed is nothing. The clock runs from the start of
training and stands still while accuracy is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accuracy import exact_accuracy
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from driftproof.tasks import arithmetic
from driftproof.types import Prompt

PROMPTS_PER_STEP = 16
RESPONSES_PER_PROMPT = 8
MAX_TOKENS = 5
TARGET = 0.60
MEASURE_EVERY = 5
"""Steps between two measurements of accuracy."""
WARM_UP_STEPS = 5
"""Left out of steps/s."""


class Stopwatch(TrainerCallback):
    """Times every step and measures accuracy, with the clock stopped, every `MEASURE_EVERY` steps."""

    def __init__(self, tokenizer: Any, heldout: list[Prompt]) -> None:
        self.tokenizer, self.heldout = tokenizer, heldout
        self.step_seconds: list[float] = []
        self.curve: list[tuple[int, float, float]] = []
        """Step, seconds of training, sampled accuracy."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._measure(0, model)
        self.last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.step_seconds.append(time.perf_counter() - self.last)
        if state.global_step % MEASURE_EVERY == 0:
            self._measure(state.global_step, model)
        self.last = time.perf_counter()

    def _measure(self, step: int, model: Any) -> None:
        accuracy = exact_accuracy(model, self.tokenizer, self.heldout)
        self.curve.append((step, sum(self.step_seconds), accuracy))


def exact_match(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(completion == wanted) for completion, wanted in zip(completions, answer, strict=True)]


def settings(seed: int, lr: float, steps: int, directory: str, overrides: dict[str, Any]) -> GRPOConfig:
    arguments: dict[str, Any] = {
        # The comparison: the same for both sides.
        "learning_rate": lr,
        "lr_scheduler_type": "constant",
        "max_steps": steps,
        "seed": seed,
        "per_device_train_batch_size": PROMPTS_PER_STEP * RESPONSES_PER_PROMPT,
        "gradient_accumulation_steps": 1,
        "num_generations": RESPONSES_PER_PROMPT,
        "max_completion_length": MAX_TOKENS,
        "temperature": 1.0,
        "beta": 0.0,
        "bf16": False,
        "use_cpu": True,
        # What makes TRL fast.
        "steps_per_generation": 1,
        "gradient_checkpointing": False,
        "optim": "adamw_torch_fused",
        "generation_kwargs": {"use_cache": True},
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "output_dir": directory,
    }
    return GRPOConfig(**(arguments | overrides))


def measure(model_directory: Path, seed: int, lr: float, steps: int, overrides: dict[str, Any]) -> dict[str, Any]:
    task = arithmetic(digits=2)
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    stopwatch = Stopwatch(tokenizer, list(task.heldout))
    with tempfile.TemporaryDirectory() as directory:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_directory),
            processing_class=tokenizer,
            reward_funcs=exact_match,
            train_dataset=Dataset.from_list([{"prompt": p.text, "answer": p.answer} for p in task.train]),
            args=settings(seed, lr, steps, directory, overrides),
            callbacks=[stopwatch],
        )
        trainer.train()
    return {
        "side": "trl",
        "seed": seed,
        "lr": lr,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "steps_per_second": 1 / statistics.median(stopwatch.step_seconds[WARM_UP_STEPS:]),
        f"seconds_to_{TARGET:.2f}": next(
            (seconds for _, seconds, accuracy in stopwatch.curve if accuracy >= TARGET), None
        ),
        "accuracy_before": stopwatch.curve[0][2],
        "accuracy_after": stopwatch.curve[-1][2],
        "curve": stopwatch.curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base model, as `driftproof tiny-model` makes it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--set", type=json.loads, default={}, help="JSON of further GRPOConfig fields, to try a setting"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.model, arguments.seed, arguments.lr, arguments.steps, arguments.set)
    arguments.output.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
