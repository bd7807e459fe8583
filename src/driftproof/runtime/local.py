"""A run on this machine: one process for the learner, one per rollout worker, and this one, which watches.

Guarantees: a worker that dies gives its leases back at once and is started again, a bounded number of times; the
learner's death stops the run with its last words; Ctrl-C and SIGTERM stop it cleanly; whatever happens, no process is
left behind and the directory can be resumed.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from driftproof.config import Config, ConfigError
from driftproof.learner import list_checkpoints
from driftproof.ledger import FINISHED, RUNNING, STOPPING, Ledger, Plan
from driftproof.report.display import Display
from driftproof.runtime.assembly import RunDirectory, preflight, prepare_directory, resolve_device
from driftproof.runtime.processes import EVALUATOR, run_both, run_evaluator, run_learner, run_worker
from driftproof.weights import discard_after

if TYPE_CHECKING:
    from driftproof.engines.vllm.launch import Server

TICK_SECONDS = 0.25
STOP_SECONDS = 120.0
"""How long a clean stop may take before processes are killed."""


class RunError(RuntimeError):
    """A run that ended before its time; the message says why and how to go on."""


def start(config: Config, display: Display) -> RunDirectory:
    """Check everything, make the run directory, and train until done or stopped.

    Raises:
        ValueError: bad input, before any process starts. RunError: the run ended before its time.
    """
    _warm_up()
    plan = preflight(config)
    directory = prepare_directory(config, plan)
    _run(config, directory, display)
    return directory


def resume(path: Path, config: Config, display: Display) -> RunDirectory:
    """Go on with a run from its newest checkpoint.

    Raises:
        ConfigError: not a run, or made with another model, seed or shape than `config` says. RunError: as in `start`.
    """
    _warm_up()
    directory = RunDirectory(path=path)
    plan = preflight(config)
    with _locked(directory), Ledger(directory.ledger) as ledger:
        _check_same_run(path, plan, ledger.plan)
        if plan.steps != ledger.plan.steps:
            ledger.extend(plan.steps)
        checkpoints = list_checkpoints(directory.checkpoints)
        step = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
        if step > ledger.step:
            raise ConfigError(
                f"{checkpoints[-1]} is of step {step}, the ledger knows only {ledger.step}; they are of different runs"
            )
        again = ledger.rewind(step)
        discard_after(directory.snapshots, step)
        directory.config.write_text(config.to_toml())
        display.message(f"resuming {path} from step {step} of {plan.steps}; {again} groups are trained again")
    _run(config, directory, display)
    return directory


def _warm_up() -> None:
    """Let the server that our processes are forked from import torch and transformers while this process checks."""
    multiprocessing.set_forkserver_preload(
        ["driftproof.runtime.processes", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"]
    )
    forkserver.ensure_running()


def _check_same_run(path: Path, ours: Plan, theirs: Plan) -> None:
    """Refuse to go on with a run under settings that would make it another."""
    what = {
        "model": "another model (its configuration or tokenizer differ)",
        "prompts": f"a task of {theirs.prompts} training prompts, not {ours.prompts}",
        "recorded_prompts": f"a trace of {theirs.recorded_prompts} recorded prompts beside the task's, not "
        f"{ours.recorded_prompts}",
        "recorded_share": f"rollouts.recorded_share {theirs.recorded_share}, not {ours.recorded_share}",
        "seed": f"run.seed {theirs.seed}, not {ours.seed}",
        "groups_per_step": f"learner.groups_per_step {theirs.groups_per_step}, not {ours.groups_per_step}",
        "max_staleness": f"a staleness of {theirs.max_staleness}, not {ours.max_staleness}",
        "channels": f"an objective that needs {sorted(theirs.channels) or 'no channels'}, "
        f"not {sorted(ours.channels) or 'none'}",
    }
    for field, difference in what.items():
        if getattr(ours, field) != getattr(theirs, field):
            raise ConfigError(f"{path} was made with {difference}; start a new run instead")


def _run(config: Config, directory: RunDirectory, display: Display) -> None:
    directory = RunDirectory(path=directory.path.absolute())
    with (
        _locked(directory),
        Ledger(directory.ledger) as ledger,
        _signals() as received,
        _launched(config, directory, display, received) as server,
    ):
        crew = _Crew(config, directory, ledger, display, server)
        try:
            crew.watch(received)
        except sqlite3.OperationalError as error:
            # Whichever process meets a full disk first, the user reads the same.
            raise RunError(f"the ledger of {directory.path} cannot be written: {error}; {crew.hint}") from error
        finally:
            crew.end()


@contextmanager
def _launched(
    config: Config, directory: RunDirectory, display: Display, signals: Sequence[int]
) -> Iterator[Server | None]:
    """The vLLM server that the run asks for, ready; None where it asks for none."""
    if not config.engine.launch:
        yield None
        return
    from driftproof.engines.vllm.launch import launch

    engine, log = config.engine, directory.logs / "vllm.log"
    display.message(f"starting vLLM; its output goes to {log}")
    server = launch(
        engine.python,
        config.model.path,
        log=log,
        device=resolve_device(engine.device),
        threads=engine.threads,
        slots=engine.slots,
        arguments=engine.arguments,
    )
    try:
        if not server.wait_ready(engine.start_seconds, lambda: bool(signals)):
            raise RunError("stopped before vLLM was ready")
        directory.server_url.write_text(server.url)
        yield server
    finally:
        server.stop()


class _Crew:
    """The processes of a run."""

    def __init__(
        self, config: Config, directory: RunDirectory, ledger: Ledger, display: Display, server: Server | None = None
    ) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._directory = directory
        self._ledger = ledger
        self._display = display
        self._server = server
        self._server_restarts_left = config.runtime.max_restarts
        names = [f"worker-{i}" for i in range(config.rollouts.workers)] if config.runtime.mode == "async" else []
        if config.evaluation.every:
            names.append(EVALUATOR)
        self._restarts_left = dict.fromkeys(names, config.runtime.max_restarts)
        target = run_learner if config.runtime.mode == "async" else run_both
        self._learner = self._start(target, "learner", directory.path)
        self._workers = {name: self._start_worker(name) for name in self._restarts_left}

    def watch(self, signals: Sequence[int]) -> None:
        """Until the learner ends; once `signals` has received one, the run is asked to stop.

        Raises:
            RunError: the learner or a worker failed for good, or the run was stopped before its last step.
        """
        stopping_since: float | None = None
        while self._learner.is_alive():
            self._display.update(self._ledger)
            state = self._ledger.state
            if state == RUNNING and signals:
                self._display.message("stopping: the learner finishes its step and writes a checkpoint")
                self._ledger.set_state(STOPPING)
            elif state == RUNNING:
                self._replace_dead_workers()
                self._restart_dead_server()
            elif state == STOPPING:
                stopping_since = stopping_since or time.monotonic()
                if time.monotonic() - stopping_since > STOP_SECONDS:
                    raise RunError(f"the learner did not stop within {STOP_SECONDS:.0f} s and is killed; {self.hint}")
            self._learner.join(TICK_SECONDS)
        self._display.update(self._ledger)
        if self._learner.exitcode != 0:
            raise RunError(f"the learner {_ending(self._learner)}:\n{self._last_words('learner')}\n{self.hint}")
        if self._ledger.state != FINISHED:
            raise RunError(f"stopped at step {self._ledger.step} of {self._ledger.plan.steps}; {self.hint}")

    def end(self) -> None:
        """Leave no process behind."""
        for process in (self._learner, *self._workers.values()):
            process.join(5 if self._ledger.state != RUNNING else 0)
            if process.is_alive():
                process.kill()
                process.join()

    @property
    def hint(self) -> str:
        """How to go on."""
        return f"go on with: driftproof train --resume {self._directory.path}"

    def _start_worker(self, name: str) -> BaseProcess:
        if name == EVALUATOR:
            return self._start(run_evaluator, name, self._directory.path)
        return self._start(run_worker, name, self._directory.path, name)

    def _start(self, target: Callable[..., None], name: str, *arguments: object) -> BaseProcess:
        process = self._context.Process(target=target, args=arguments, name=name, daemon=True)
        process.start()
        return process

    def _replace_dead_workers(self) -> None:
        for name, process in self._workers.items():
            if process.is_alive() or self._ledger.state != RUNNING:
                continue
            leases = self._ledger.release(name)
            what = f"{name} {_ending(process)}; {leases} leases went back to the pool"
            self._ledger.record_event("worker died", f"{what}; {self._last_words(name).splitlines()[-1:]}")
            if self._restarts_left[name] == 0:
                self._ledger.set_state(STOPPING)
                raise RunError(f"{what}, and it has no restarts left:\n{self._last_words(name)}\n{self.hint}")
            self._restarts_left[name] -= 1
            self._display.message(f"{what}; it is started again")
            self._workers[name] = self._start_worker(name)

    def _restart_dead_server(self) -> None:
        """The address stays the same; the workers' engine brings it the weights again."""
        if self._server is None or self._server.alive:
            return
        words = self._server.last_words()
        self._ledger.record_event("server died", words)
        if self._server_restarts_left == 0:
            self._ledger.set_state(STOPPING)
            raise RunError(f"vLLM died, and has no restarts left: {words}\n{self.hint}")
        self._server_restarts_left -= 1
        self._display.message("vLLM died; it is started again")
        self._server.restart()

    def _last_words(self, name: str) -> str:
        log = self._directory.logs / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join(lines[-12:])


def _ending(process: BaseProcess) -> str:
    code = process.exitcode
    return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"


@contextmanager
def _locked(directory: RunDirectory) -> Iterator[None]:
    """Only one driftproof at a time works on a run."""
    if not directory.ledger.is_file():
        raise ConfigError(f"{directory.path} is not a run: it has no {directory.ledger.name}")
    descriptor = os.open(directory.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"{directory.path} is in use by another driftproof; wait for it, or stop it first") from None
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
