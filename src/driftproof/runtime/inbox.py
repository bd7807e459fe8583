"""The inbox of a run, from its directory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from driftproof.config import Config
from driftproof.errors import ConfigError
from driftproof.inbox.service import Inbox
from driftproof.run import RunDirectory
from driftproof.runtime.build import make_sampling, make_task, make_verifier
from driftproof.tasks.codec import Codec
from driftproof.weights.models import inspect_model

SECTIONS = ("model", "task", "sampling", "rollouts", "verify")
"""Sections of the configuration that an inbox is made of."""


def open_inbox(path: Path) -> Inbox:
    """The inbox of the run in a directory; the learner need not run.

    Raises:
        ValueError: it is not a run, or one that trains on recorded traces, if only in part; the run's model or task
            cannot be read.
    """
    directory = RunDirectory(path=path)
    if not (directory.config.is_file() and directory.ledger.is_file()):
        raise ConfigError(f"{path} is not a run: it has no {directory.config.name} or no {directory.ledger.name}")
    config = Config.from_toml(directory.config.read_text())
    task = make_task(config)
    if config.rollouts.recorded_share == 1:
        raise ConfigError(f"{path} trains on recorded traces; there is nothing for workers to write")
    if task.recorded:
        raise ConfigError(
            f"{path} mixes recorded groups with live ones (rollouts.recorded_share); which of them a lease is of "
            "cannot be chosen, so there is no inbox; built-in workers write them all (rollouts.workers)"
        )
    model = inspect_model(config.model.path)
    codec = Codec(config.model.path)
    return Inbox(
        directory,
        task,
        codec,
        model.vocabulary,
        partial(make_verifier, config, task),
        config.rollouts,
        make_sampling(config, codec),
        up_to_date=partial(_up_to_date, directory, config),
    )


def _up_to_date(directory: RunDirectory, config: Config) -> bool:
    """Whether a resume has left the settings of the inbox alone."""
    try:
        now = Config.from_toml(directory.config.read_text())
    except (OSError, ValueError):  # a resume is writing it
        return False
    return all(getattr(now, section) == getattr(config, section) for section in SECTIONS)
