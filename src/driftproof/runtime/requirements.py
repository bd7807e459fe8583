"""What a recipe needs of a machine, beside what this one has.

Guarantees: nothing is downloaded, loaded or started; of the model only `config.json` is read.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import torch

from driftproof.config import Config
from driftproof.runtime.build import resolve_device
from driftproof.runtime.memory import engine_memory, learner_memory, read_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """Memory that one process of a run needs."""

    process: str
    device: str
    parts: dict[str, int]
    """Bytes, by what they are for."""
    available: int
    """Bytes of memory that the device has in all."""

    @property
    def needed(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


def requirements(config: Config) -> list[Requirement]:
    """Learner and one rollout worker; the largest micro-batch has `learner.token_budget` positions.

    Raises:
        ModelError: the model directory has no usable config.json.
        ConfigError: a device this machine does not have.
    """
    model = read_config(config.model.path)
    longest = max(config.learner.row_tokens, config.sampling.max_tokens)
    row_tokens = min(longest, config.learner.positions)
    device = resolve_device(config.learner.device)
    learner = learner_memory(
        model,
        rows=max(config.learner.positions // row_tokens, 1),
        row_tokens=row_tokens,
        bfloat16=config.learner.dtype == "bfloat16" or (config.learner.dtype == "auto" and device != "cpu"),
        gradient_checkpointing=config.learner.gradient_checkpointing,
    )
    found = [Requirement(process="learner", device=device, parts=asdict(learner), available=memory_of(device))]
    if config.engine.name == "embedded":
        device = resolve_device(config.engine.device)
        engine = engine_memory(model, slots=config.engine.slots, tokens=longest)
        found.append(
            Requirement(process="each worker", device=device, parts=asdict(engine), available=memory_of(device))
        )
    return found


def memory_of(device: str) -> int:
    """Bytes of a device in all."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
