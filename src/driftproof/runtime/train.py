"""A training run from its first line to its last: started in a new directory, or resumed from its newest checkpoint.

Guarantees: bad input is refused before any process starts; Ctrl-C, SIGTERM and a closed terminal are a clean stop; a
resume changes nothing before it has seen that it can go on.
"""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from driftproof.config import Config
from driftproof.errors import CheckpointError, ConfigError, LedgerError, RunError, UnavailableError, command_line
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import Plan
from driftproof.report.display import Display
from driftproof.run import RunDirectory, fsync, locked, partial_name, step_of
from driftproof.runtime.placement.child import write_trouble
from driftproof.runtime.placement.local import LocalPlacement, abandon, warm_up
from driftproof.runtime.preflight import is_unbegun, preflight, prepare_directory
from driftproof.runtime.resources import resolve, resolve_device, thread_count
from driftproof.runtime.supervisor import Supervisor, directory_gone, resume_hint
from driftproof.weights.checkpoints import check_checkpoint, list_checkpoints
from driftproof.weights.models import earlier_fingerprint
from driftproof.weights.snapshots import discard_after

if TYPE_CHECKING:
    from driftproof.engines.vllm.launch import Server


def start(config: Config, display: Display) -> RunDirectory:
    """Check everything, make the run directory, and train until done or stopped.

    Raises:
        ValueError: bad input, before any process starts. RunError: the run ended before its time.
    """
    plan, config = _checked(config, config.run.name, display)
    # From here on there is something to be stopped cleanly.
    with _signals() as received:
        directory = prepare_directory(config, plan)
        _run(config, directory, display, received)
    return directory


def resume(path: Path, config: Config, display: Display) -> RunDirectory:
    """Go on with a run from its newest checkpoint.

    Raises:
        UnavailableError: not a run, or in use. ConfigError: made with another model, seed or shape than `config` says.
        RunError: as in `start`.
    """
    directory = RunDirectory(path=path)
    if is_unbegun(path):
        anew = command_line("driftproof", "train", directory.config, "--run.directory", path)
        raise UnavailableError(f"{path} has not begun: its start was broken off before its ledger was made; {anew}")
    plan, config = _checked(config, path, display)
    with locked(path, display.message), Ledger(directory.ledger) as ledger:
        _check_same_run(path, _as_before(plan, config, ledger.plan), ledger.plan)
        step = _step_to_go_on_from(directory, config, ledger.step)
        settled = _write_beside(directory.config, config.to_toml())
        try:
            if (plan.steps, plan.publish_every) != (ledger.plan.steps, ledger.plan.publish_every):
                ledger.extend(plan.steps, plan.publish_every)
            again = ledger.rewind(step)
            # That of this very step is written anew, from the checkpoint that was looked at.
            discard_after(directory.snapshots, step - 1)
            settled.replace(directory.config)
        except (sqlite3.DatabaseError, OSError) as error:
            raise _explained(error, directory) from error
        display.message(f"resuming {path} from step {step} of {plan.steps}; {again} groups are trained again")
    _run(config, directory, display)
    return directory


def _checked(config: Config, run: str | Path, display: Display) -> tuple[Plan, Config]:
    """The plan of a run and its settled configuration; the server of its processes does its imports meanwhile."""
    warm_up()
    display.starting(run, "checks the recipe, its model and its prompts")
    try:
        plan = preflight(config, lambda text: display.message(f"warning: {text}"), display.message)
        return plan, resolve(config)
    except KeyboardInterrupt:
        abandon()
        raise


def _step_to_go_on_from(directory: RunDirectory, config: Config, ledger_step: int) -> int:
    """The newest checkpoint's step, if it is whole and of this run; 0 where there is none."""
    checkpoints = list_checkpoints(directory.checkpoints)
    if not checkpoints:
        return 0
    newest = checkpoints[-1]
    step = step_of(newest)
    if step > ledger_step:
        raise ConfigError(
            f"{newest} is of step {step}, the ledger knows only {ledger_step}: the end of the ledger is lost, as after "
            "a crash of the disk; to go on from this checkpoint: "
            f"{command_line('driftproof', 'ledger', 'repair', directory.path)}"
        )
    try:
        check_checkpoint(newest, config.model.path)
    except CheckpointError as error:
        before = f"the one before, {checkpoints[-2].name}" if len(checkpoints) > 1 else "the start"
        raise ConfigError(
            f"the newest checkpoint is broken: {error}; nothing was changed. To go on from {before}: "
            f"{command_line('mv', newest, directory.path / f'broken-{newest.name}')} and resume again"
        ) from error
    return step


def _write_beside(path: Path, text: str) -> Path:
    """Write what is to become `path`, so that a full disk is met before anything is changed."""
    partial = partial_name(path)
    try:
        partial.write_text(text, encoding="utf-8")
        fsync(partial)
    except OSError as error:
        raise ConfigError(f"run directory {path.parent} cannot be written: {error.strerror}") from error
    return partial


def _as_before(ours: Plan, config: Config, theirs: Plan) -> Plan:
    """Our plan as an earlier version wrote it, to which a model's chat template was no part of it, if theirs is one."""
    earlier = earlier_fingerprint(config.model.path)
    return replace(ours, model=earlier) if theirs.model == earlier else ours


def _check_same_run(path: Path, ours: Plan, theirs: Plan) -> None:
    """Refuse to go on with a run under settings that would make it another."""
    if theirs.prompts == ours.recorded_prompts and not (ours.prompts or theirs.recorded_prompts):
        # Older runs on a trace alone have its prompts as live ones, in the same order.
        ours = replace(ours, prompts=theirs.prompts, recorded_prompts=0, recorded_share=0.0)
    what = {
        "model": "another model (its configuration, tokenizer or chat template differ)",
        "prompts": f"a task of {theirs.prompts} training prompts, not {ours.prompts}",
        "recorded_prompts": f"a trace of {theirs.recorded_prompts} recorded prompts beside the task's, not "
        f"{ours.recorded_prompts}",
        "recorded_share": f"rollouts.recorded_share {theirs.recorded_share}, not {ours.recorded_share}",
        "seed": f"run.seed {theirs.seed}, not {ours.seed}",
        "groups_per_step": f"learner.groups_per_step {theirs.groups_per_step}, not {ours.groups_per_step}",
        "max_staleness": f"a staleness of {theirs.max_staleness}, not {ours.max_staleness}",
        "channels": f"an objective that needs {_named(theirs) or 'no channels'}, not {_named(ours) or 'none'}",
    }
    for field, difference in what.items():
        if getattr(ours, field) != getattr(theirs, field):
            raise ConfigError(f"{path} was made with {difference}; start a new run instead")


def _named(plan: Plan) -> str:
    return " and ".join(sorted(channel.value for channel in plan.channels))


def _run(config: Config, directory: RunDirectory, display: Display, signals: list[int] | None = None) -> None:
    directory = RunDirectory(path=directory.path.absolute())
    with (
        locked(directory.path, display.message),
        Ledger(directory.ledger) as ledger,
        _signals() if signals is None else nullcontext(signals) as received,
        _launched(config, directory, display, received) as server,
    ):
        display.starting(directory.path.name, "starts its processes")
        supervisor = Supervisor(config, directory, ledger, LocalPlacement(directory=directory), display, server)
        try:
            supervisor.watch(received)
        except (LedgerError, sqlite3.Error, OSError) as error:
            # Whichever process meets a full disk first, the user reads the same.
            raise _explained(error, directory) from error
        finally:
            supervisor.end()


def _explained(error: Exception, directory: RunDirectory) -> Exception:
    """The sentence for a directory that is gone or cannot be written; any other error as it is."""
    if not directory.ledger.exists():
        return directory_gone(directory)
    sentence = write_trouble(error, directory.path)
    return RunError(f"{sentence}; {resume_hint(directory)}") if sentence else error


@contextmanager
def _launched(
    config: Config, directory: RunDirectory, display: Display, signals: Sequence[int]
) -> Iterator[Server | None]:
    """The vLLM server that the run asks for, ready; None where it asks for none."""
    if not config.engine.launch:
        yield None
        return
    from driftproof.engines.vllm.launch import launch

    engine, log = config.engine, directory.log("vllm")
    display.message(f"starting vLLM; its output goes to {log}")
    server = launch(
        engine.python,
        config.model.path,
        log=log,
        device=resolve_device(engine.device),
        threads=thread_count(engine.threads),
        slots=engine.slots,
        arguments=engine.arguments,
    )
    try:
        if not server.wait_ready(config.runtime.start_seconds, lambda: bool(signals)):
            raise RunError("stopped before vLLM was ready")
        directory.server_url.write_text(server.url)
        yield server
    finally:
        server.stop()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP instead of dying of them."""
    received: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    # Under nohup a closed terminal means nothing.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
