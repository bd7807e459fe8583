"""Names that people give for settings and commands, and what they meant by them."""

import difflib
from collections.abc import Iterable

COMMANDS = {
    "run": "train",
    "start": "train",
    "fit": "train",
    "resume": "train --resume",
    "evaluate": "eval",
    "benchmark": "eval --benchmarks",
    "score": "verify",
    "show": "report",
    "summary": "report",
    "plot": "report",
    "rollouts": "groups",
    "samples": "groups",
    "doctor": "check",
    "serve": "inbox",
    "repair": "ledger repair",
    "prune": "ledger prune",
    "grid": "lab",
    "version": "--version",
    "help": "--help",
}
"""Commands by names that others have for them."""

SETTINGS = {
    "algo": "objective.name",
    "algorithm": "objective.name",
    "loss": "objective.name",
    "loss_type": "objective.name",
    "objective": "objective.name",
    "beta": "objective.kl",
    "kl_coef": "objective.kl",
    "task": "task.name",
    "data": "task.path",
    "dataset": "task.path",
    "train_file": "task.path",
    "reward": "task.verifier",
    "reward_funcs": "task.verifier",
    "reward_function": "task.verifier",
    "verifier": "task.verifier",
    "model": "model.path",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "model_path": "model.path",
    "ref_model": "model.reference",
    "engine": "engine.name",
    "gpu": "engine.device",
    "learning_rate": "learner.lr",
    "batch_size": "learner.groups_per_step",
    "train_batch_size": "learner.groups_per_step",
    "per_device_train_batch_size": "learner.groups_per_step",
    "num_iterations": "learner.updates_per_step",
    "ppo_epochs": "learner.updates_per_step",
    "gradient_accumulation_steps": "learner.token_budget",
    "grad_clip": "learner.max_grad_norm",
    "bf16": "learner.dtype",
    "precision": "learner.dtype",
    "save_every": "learner.checkpoint_every",
    "save_steps": "learner.checkpoint_every",
    "lr_scheduler_type": "learner.schedule",
    "warmup": "learner.warmup_steps",
    "group": "rollouts.group_size",
    "n": "rollouts.group_size",
    "num_generations": "rollouts.group_size",
    "samples_per_prompt": "rollouts.group_size",
    "num_workers": "rollouts.workers",
    "staleness": "rollouts.max_staleness",
    "trace": "rollouts.path",
    "max_completion_length": "sampling.max_tokens",
    "max_length": "sampling.max_tokens",
    "max_new_tokens": "sampling.max_tokens",
    "max_response_length": "sampling.max_tokens",
    "dir": "run.directory",
    "output": "run.directory",
    "output_dir": "run.directory",
    "epochs": "run.steps",
    "max_steps": "run.steps",
    "num_steps": "run.steps",
    "num_train_epochs": "run.steps",
    "total_steps": "run.steps",
    "run_name": "run.name",
    "eval_every": "evaluation.every",
    "eval_steps": "evaluation.every",
    "sync": "runtime.mode",
    "wandb_project": "tracking.wandb",
}
"""Settings by names that others have for them; the key of a setting alone needs no line here."""


def meant_command(word: str, commands: Iterable[str]) -> str:
    """The command that was meant by an unknown one; "" where nothing comes near."""
    if word.endswith(".toml"):
        return f"train {word}"
    close = difflib.get_close_matches(word, [*commands, *COMMANDS], n=1)
    return COMMANDS.get(close[0], close[0]) if close else ""


def meant_settings(name: str, settings: Iterable[str]) -> list[str]:
    """The settings, each `section.key`, that were meant by an unknown one, or by a key alone.

    `meant_settings("lr", ...)` is `["learner.lr"]`, as is that of `learning_rate`, `run.lr`, `learner.lrr` or `l-r`.
    """
    settings = list(settings)
    section, _, key = name.lower().replace("-", "_").rpartition(".")
    keys = {setting: setting.partition(".")[2] for setting in settings}
    beside = [each for setting, each in keys.items() if section and setting.startswith(f"{section}.")]
    if close := difflib.get_close_matches(key, beside, n=1, cutoff=0.8):
        return [f"{section}.{close[0]}"]
    found = [setting for setting, each in keys.items() if each == key]
    # A section alone has a setting that it is about, whatever others bear its name.
    if SETTINGS.get(key) in settings and (not found or SETTINGS[key].startswith(f"{key}.")):
        found = [SETTINGS[key], *found]
    if not found and (close := difflib.get_close_matches(key, {*keys.values(), *SETTINGS}, n=1, cutoff=0.75)):
        return meant_settings(close[0], settings)
    return found
