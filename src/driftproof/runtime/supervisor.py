"""A run on this machine: one process for the learner, one per rollout worker, and this one, which watches.

Guarantees: a worker that dies gives its leases back at once and is started again, a bounded number of times, and so is
one that no longer reports; the learner's death stops the run with its last words; a run that stands still is stopped
with a line for each process, what it waits for, and the stacks of all in a file; Ctrl-C, SIGTERM and a closed terminal
stop it cleanly; whatever happens, no process is left behind and the directory can be resumed. A resume changes nothing
before it has seen that it can go on.
"""

from __future__ import annotations

import multiprocessing
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from driftproof.config import Config
from driftproof.errors import CheckpointError, ConfigError, LedgerError, RunError
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.reader import LedgerReader
from driftproof.ledger.records import FINISHED, RUNNING, STOPPING, Counters, Plan
from driftproof.report.display import Display
from driftproof.run import RunDirectory, fsync, locked
from driftproof.runtime.preflight import preflight, prepare_directory
from driftproof.runtime.processes import (
    EVALUATOR,
    STOP_SECONDS,
    run_both,
    run_evaluator,
    run_learner,
    run_worker,
    write_trouble,
)
from driftproof.runtime.resources import resolve, resolve_device, thread_count
from driftproof.runtime.watchdog import Reports, Standstill, ask_for_stacks, is_stopped, who_waits, write_stacks
from driftproof.weights.checkpoints import check_checkpoint, list_checkpoints
from driftproof.weights.snapshots import discard_after

if TYPE_CHECKING:
    from driftproof.engines.vllm.launch import Server

TICK_SECONDS = 0.25
EXIT_SECONDS = 5.0
"""How long a process may take to exit, once it has nothing left to do."""


def start(config: Config, display: Display) -> RunDirectory:
    """Check everything, make the run directory, and train until done or stopped.

    Raises:
        ValueError: bad input, before any process starts. RunError: the run ended before its time.
    """
    _warm_up()
    plan = preflight(config)
    config = resolve(config)
    directory = prepare_directory(config, plan)
    _run(config, directory, display)
    return directory


def resume(path: Path, config: Config, display: Display) -> RunDirectory:
    """Go on with a run from its newest checkpoint.

    Raises:
        UnavailableError: not a run, or in use. ConfigError: made with another model, seed or shape than `config` says.
        RunError: as in `start`.
    """
    _warm_up()
    directory = RunDirectory(path=path)
    plan = preflight(config)
    config = resolve(config)
    with locked(path, display.message), Ledger(directory.ledger) as ledger:
        _check_same_run(path, plan, ledger.plan)
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
            raise _explained(error, path) from error
        display.message(f"resuming {path} from step {step} of {plan.steps}; {again} groups are trained again")
    _run(config, directory, display)
    return directory


def _step_to_go_on_from(directory: RunDirectory, config: Config, ledger_step: int) -> int:
    """That of the newest checkpoint; 0 where there is none.

    Raises:
        ConfigError: the checkpoint is broken, or of another run.
    """
    checkpoints = list_checkpoints(directory.checkpoints)
    if not checkpoints:
        return 0
    newest = checkpoints[-1]
    step = int(newest.name.removeprefix("step-"))
    if step > ledger_step:
        raise ConfigError(
            f"{newest} is of step {step}, the ledger knows only {ledger_step}: the end of the ledger is lost, as after "
            f"a crash of the disk; to go on from this checkpoint: driftproof ledger repair {directory.path}"
        )
    try:
        check_checkpoint(newest, config.model.path)
    except CheckpointError as error:
        before = f"the one before, {checkpoints[-2].name}" if len(checkpoints) > 1 else "the start"
        raise ConfigError(
            f"the newest checkpoint is broken: {error}; nothing was changed. To go on from {before}: "
            f"mv {newest} {directory.path / f'broken-{newest.name}'} and resume again"
        ) from error
    return step


def _write_beside(path: Path, text: str) -> Path:
    """Write what is to become `path`, so that a full disk is met before anything is changed.

    Raises:
        ConfigError: it cannot be written.
    """
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(text)
        fsync(partial)
    except OSError as error:
        raise ConfigError(f"run directory {path.parent} cannot be written: {error.strerror}") from error
    return partial


def _warm_up() -> None:
    """Let the server that our processes are forked from import torch and transformers while this process checks."""
    # A signal to the whole process group, as a closing terminal sends it, must not end that server: how its children
    # end could not be known. What is ignored stays so in a new program.
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        _start_forkserver()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start_forkserver() -> None:
    multiprocessing.set_forkserver_preload(
        ["driftproof.runtime.processes", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"]
    )
    forkserver.ensure_running()


def _check_same_run(path: Path, ours: Plan, theirs: Plan) -> None:
    """Refuse to go on with a run under settings that would make it another."""
    if theirs.prompts == ours.recorded_prompts and not (ours.prompts or theirs.recorded_prompts):
        # Older runs on a trace alone have its prompts as live ones, in the same order.
        ours = replace(ours, prompts=theirs.prompts, recorded_prompts=0, recorded_share=0.0)
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
        locked(directory.path, display.message),
        Ledger(directory.ledger) as ledger,
        _signals() as received,
        _launched(config, directory, display, received) as server,
    ):
        crew = _Crew(config, directory, ledger, display, server)
        try:
            crew.watch(received)
        except (sqlite3.DatabaseError, OSError) as error:
            # Whichever process meets a full disk first, the user reads the same.
            raise _explained(error, directory.path) from error
        finally:
            crew.end()


def _explained(error: Exception, run: Path) -> Exception:
    """The sentence for a disk that cannot be written; any other error as it is."""
    sentence = write_trouble(error, run)
    return RunError(f"{sentence}; {_hint(run)}") if sentence else error


def _hint(run: Path) -> str:
    return f"go on with: driftproof train --resume {run}"


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


class _Nowhere:
    """The display of a run whose terminal is gone."""

    def update(self, ledger: LedgerReader) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A process of a run."""

    name: str
    process: BaseProcess
    words: Connection
    """Where it says what ended it, if it can."""

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def ending(self) -> str:
        """How it ended: in a sentence of its own, or by what the system says. To be asked once."""
        try:
            if self.words.poll():
                return f"ended: {self.words.recv_bytes().decode(errors='replace')}"
        except EOFError:
            pass
        code = self.process.exitcode
        return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"


class _Crew:
    """The processes of a run."""

    def __init__(
        self, config: Config, directory: RunDirectory, ledger: Ledger, display: Display, server: Server | None = None
    ) -> None:
        runtime, self._sync = config.runtime, config.runtime.mode == "sync"
        self._context = multiprocessing.get_context("forkserver")
        self._directory = directory
        self._ledger = ledger
        self._display = display
        self._server = server
        self._server_restarts_left = runtime.max_restarts
        self._standstill = Standstill(
            ledger.step, ledger.plan.steps, stall_seconds=runtime.stall_seconds, start_seconds=runtime.start_seconds
        )
        # A worker renews its leases, and reports, four times while they last.
        self._silent_seconds = config.rollouts.silent_seconds
        self._start_seconds = runtime.start_seconds
        self._reports = Reports()
        self._log_begins: dict[str, int] = {}
        names = [] if self._sync else [f"worker-{i}" for i in range(config.rollouts.workers)]
        if config.evaluation.every:
            names.append(EVALUATOR)
        self._restarts_left = dict.fromkeys(names, runtime.max_restarts)
        self._learner = self._start(run_both if self._sync else run_learner, "learner")
        self._workers = {name: self._start_worker(name) for name in self._restarts_left}

    def watch(self, signals: Sequence[int]) -> None:
        """Until the learner ends; once `signals` has received one, the run is asked to stop.

        Raises:
            RunError: the learner or a worker failed for good, the run stood still, or was stopped before its last step.
        """
        stopping_since: float | None = None
        while self._learner.alive:
            self._show()
            state = self._ledger.state()
            if state == RUNNING and (signals or isinstance(self._display, _Nowhere)):
                self._say("stopping: the learner finishes its step and writes a checkpoint")
                self._ledger.set_state(STOPPING)
            elif state == RUNNING:
                self._replace_dead_workers()
                self._restart_dead_server()
                self._end_silent_workers()
                self._check_progress()
            else:
                stopping_since = stopping_since or time.monotonic()
                if time.monotonic() - stopping_since > STOP_SECONDS:
                    if state == FINISHED:
                        self._learner.kill()
                    else:
                        self._stand_still(f"the learner did not stop within {STOP_SECONDS:.0f} s")
            self._learner.process.join(TICK_SECONDS)
        self._show()
        if self._ledger.state() == FINISHED:
            return
        if self._learner.process.exitcode != 0:
            words = self._with_last_words("learner", self._learner.ending())
            raise RunError(f"the {words}\n{self.hint}")
        raise RunError(f"stopped at step {self._ledger.step} of {self._ledger.plan.steps}; {self.hint}")

    def end(self) -> None:
        """Leave no process behind, whatever the ledger has come to."""
        try:
            seconds = EXIT_SECONDS if self._ledger.state() != RUNNING else 0
        except (LedgerError, sqlite3.Error):
            seconds = 0
        for member in (self._learner, *self._workers.values()):
            member.process.join(seconds)
            if member.alive:
                member.kill()

    @property
    def hint(self) -> str:
        """How to go on."""
        return _hint(self._directory.path)

    def _start_worker(self, name: str) -> _Member:
        self._reports.started(name, self._ledger.counters(name), time.monotonic())
        return self._start(run_evaluator if name == EVALUATOR else run_worker, name)

    def _start(self, target: Callable[[Path, str, Connection], None], name: str) -> _Member:
        log = self._log(name)
        self._log_begins[name] = log.stat().st_size if log.exists() else 0
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=target, args=(self._directory.path, name, theirs), name=name, daemon=True
        )
        process.start()
        theirs.close()
        return _Member(name=name, process=process, words=ours)

    def _show(self) -> None:
        """A terminal that is gone, like a pipe that nobody reads, asks for a stop."""
        try:
            self._display.update(self._ledger)
        except OSError:
            self._display = _Nowhere()

    def _say(self, text: str) -> None:
        try:
            self._display.message(text)
        except OSError:
            self._display = _Nowhere()

    def _replace_dead_workers(self) -> None:
        for name, worker in self._workers.items():
            if worker.alive or self._ledger.state() != RUNNING:
                continue
            leases = self._ledger.release(name)
            ending, back = worker.ending(), f"{leases} leases went back to the pool"
            self._ledger.record_event("worker died", f"{name} {ending}; {back}")
            if self._restarts_left[name] == 0:
                self._ledger.set_state(STOPPING)
                words = self._with_last_words(name, ending)
                raise RunError(f"{words}\n{back}, and it has no restarts left; {self.hint}")
            self._restarts_left[name] -= 1
            self._say(f"{name} {ending}; {back}; it is started again")
            self._workers[name] = self._start_worker(name)

    def _end_silent_workers(self) -> None:
        """One that hangs, or was stopped, holds no leases by then; killed, it is replaced like any dead worker."""
        stopped = {name for name, worker in self._workers.items() if is_stopped(worker.process.pid or 0)}
        silences = self._silences()
        # One that was stopped may hold the ledger, and so be the reason of the others' silence.
        for name in sorted(silences, key=lambda name: name not in stopped):
            up = self._reports.is_up(name) or name in stopped
            if silences[name] <= (self._silent_seconds if up else self._start_seconds):
                continue
            worker = self._workers[name]
            found = ask_for_stacks({name: worker.process.pid or 0}, self._directory.logs)[name]
            # Before the ledger is written to: the worker may be in the middle of a transaction.
            worker.kill()
            what = f"{name} had not reported for {silences[name]:.0f} s and is killed; it {found.doing}"
            self._ledger.record_event("worker silent", what)
            self._say(what)
            self._reports.forgive(time.monotonic())
            return

    def _silences(self) -> dict[str, float]:
        """Seconds since the last report of each living rollout worker."""
        counters, now = self._ledger.workers(), time.monotonic()
        return {
            name: self._reports.silence(name, counters.get(name, Counters()), now)
            for name, worker in self._workers.items()
            if name != EVALUATOR and worker.alive
        }

    def _check_progress(self) -> None:
        evaluations = sum(map(len, self._ledger.evaluations().values()))
        limit = self._standstill.exceeded(self._ledger.status(), evaluations, time.monotonic())
        if limit is not None:
            self._stand_still(f"no step was finished and no group committed for {limit:g} s")

    def _stand_still(self, what: str) -> NoReturn:
        """Find out who waits for whom, write it down, and give up."""
        alive = [member for member in (self._learner, *self._workers.values()) if member.alive]
        # Before anybody who was stopped is made to go on.
        logs, status, silences = self._directory.logs, self._ledger.status(), self._silences()
        stacks = ask_for_stacks({member.name: member.process.pid or 0 for member in alive}, logs)
        waiting = who_waits(stacks, status, self._ledger.plan.groups_per_step, silences)
        path = logs / f"stall-{status.step:08d}.txt"
        what = f"the run stands still at step {status.step} of {self._ledger.plan.steps}: {what}"
        write_stacks(path, f"{what}\n{waiting}", stacks)
        self._ledger.record_event("stall", f"{what}; {path}")
        self._ledger.set_state(STOPPING)
        if "learner" in stacks and stacks["learner"].waits_for_groups:
            self._learner.process.join(STOP_SECONDS)
        raise RunError(f"{what}\n{waiting}\nthe stacks of these processes are in {path}; {self.hint}")

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
        self._say("vLLM died; it is started again")
        self._server.restart()

    def _with_last_words(self, name: str, ending: str) -> str:
        """An ending that does not say why, with the end of the log of whoever ended."""
        log = self._log(name)
        # Earlier processes of that name wrote to the same log.
        content = log.read_bytes()[self._log_begins[name] :] if log.exists() else b""
        lines = content.decode(errors="replace").splitlines()
        if ending.startswith("ended: ") or not lines:
            return f"{name} {ending}"
        return "\n".join([f"{name} {ending}; the end of {log}:", *lines[-12:]])

    def _log(self, name: str) -> Path:
        return self._directory.logs / f"{name}.log"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP instead of dying of them."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    # Under nohup a closed terminal means nothing.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
