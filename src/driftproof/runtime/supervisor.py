"""The supervisor of a run: it starts the processes, replaces workers, notices a standstill, and stops everything.

Guarantees: a worker that dies gives its leases back at once and is started again, a bounded number of times, and so is
one that no longer reports; the learner's death stops the run with its last error; a run that stands still is stopped
with a line for each process, what it is doing, and the stacks of all in a file; whatever happens, no process is left
behind and the directory can be resumed.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NoReturn

from driftproof.config import Config
from driftproof.errors import LedgerError, RunError, command_line
from driftproof.ledger.ledger import Ledger
from driftproof.ledger.records import FINISHED, RUNNING, STOPPING, Counters
from driftproof.report.display import Display
from driftproof.run import RunDirectory
from driftproof.runtime.placement.protocol import STOP_SECONDS, Member, Placement, Resources, Role
from driftproof.runtime.resources import thread_count
from driftproof.runtime.watchdog import Examined, Heartbeats, Watchdog, doing, who_waits, write_stacks

if TYPE_CHECKING:
    from driftproof.engines.vllm.launch import Server

TICK_SECONDS = 0.25
EXIT_SECONDS = 5.0
"""How long a process may take to exit, once it has nothing left to do."""
SILENT_LEASES = 2.0
"""Leases that a worker may let pass without a report before it is replaced; it reports four times in each."""
LEARNER, EVALUATOR = "learner", "evaluator"


class Supervisor:
    """Watches over one run: `watch`, then `end`, whatever `watch` came to."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        ledger: Ledger,
        placement: Placement,
        display: Display,
        server: Server | None = None,
    ) -> None:
        """Start all processes; `server` is the inference server that was launched for the run."""
        runtime = config.runtime
        self._config = config
        self._directory = directory
        self._hint = resume_hint(directory)
        self._ledger_file = directory.ledger.stat()
        self._ledger = ledger
        self._placement = placement
        self._display = display
        self._unseen = False
        """The terminal is gone, like a pipe that nobody reads; that asks for a stop."""
        self._server = server
        self._server_restarts_left = runtime.max_restarts
        self._watchdog = Watchdog(
            ledger.step, ledger.plan.steps, stall_seconds=runtime.stall_seconds, start_seconds=runtime.start_seconds
        )
        self._heartbeats = Heartbeats()
        roles = {} if runtime.mode == "sync" else {f"worker-{i}": Role.WORKER for i in range(config.rollouts.workers)}
        if config.evaluation.every:
            roles[EVALUATOR] = Role.EVALUATOR
        self._roles = roles
        self._restarts_left = dict.fromkeys(roles, runtime.max_restarts)
        self._learner = self._start(Role.BOTH if runtime.mode == "sync" else Role.LEARNER, LEARNER)
        self._workers = {name: self._start_worker(name) for name in roles}

    def watch(self, signals: Sequence[int]) -> None:
        """Return when the learner is done; once `signals` has received one, the run is asked to stop.

        Raises:
            RunError: it ended before its last step, whatever the cause.
        """
        stopping_since: float | None = None
        while self._learner.alive:
            self._check_directory()
            self._show()
            state = self._ledger.state()
            if state == RUNNING and (signals or self._unseen):
                self._show("stopping: the learner finishes its step and writes a checkpoint")
                self._ledger.set_state(STOPPING)
            elif state == RUNNING:
                self._replace_dead_workers()
                self._restart_dead_server()
                self._kill_silent_worker()
                self._check_progress()
            else:
                stopping_since = stopping_since or time.monotonic()
                if time.monotonic() - stopping_since > STOP_SECONDS:
                    if state == FINISHED:
                        self._learner.kill()
                    else:
                        self._stand_still(f"the learner did not stop within {STOP_SECONDS:.0f} s")
            self._learner.wait(TICK_SECONDS)
        self._check_directory()
        self._show()
        if self._ledger.state() == FINISHED:
            return
        if error := self._learner.last_error():
            self._fail(f"the learner {error}", self._learner)
        raise RunError(f"stopped at step {self._ledger.step} of {self._ledger.plan.steps}; {self._hint}")

    def end(self) -> None:
        """Leave no process behind, whatever the ledger has come to."""
        try:
            seconds = EXIT_SECONDS if self._ledger.state() != RUNNING else 0
        except (LedgerError, sqlite3.Error):
            seconds = 0
        for member in (self._learner, *self._workers.values()):
            member.wait(seconds)
            if member.alive:
                member.kill()

    def _fail(self, what: str, member: Member) -> NoReturn:
        """End the run for a member that failed for good."""
        # Servers that are mended need nothing else; a model that cannot be run is the same in a resume.
        has_servers = bool(self._config.engine.url or self._config.engine.launch)
        hopeless = member.refused_input and not has_servers
        hint = "a resume would end the same way until that is mended" if hopeless else self._hint
        raise RunError("\n".join(filter(None, [what, member.last_output(), hint])))

    def _start_worker(self, name: str) -> Member:
        self._heartbeats.started(name, self._ledger.counters(name), time.monotonic())
        return self._start(self._roles[name], name)

    def _start(self, role: Role, name: str) -> Member:
        trains = role in (Role.LEARNER, Role.BOTH)
        threads = self._config.learner.threads if trains else self._config.engine.threads
        return self._placement.start(role, name, Resources(threads=thread_count(threads)))

    def _show(self, message: str = "") -> None:
        """Print a message, or bring the display up to date."""
        if self._unseen:
            return
        try:
            if message:
                self._display.message(message)
            else:
                self._display.update(self._ledger, self._doing())
        except OSError:
            self._unseen = True

    def _doing(self) -> dict[str, tuple[str, float]]:
        """The doing of each living process, as it told it last, and for how many seconds."""
        members = [member for member in (self._learner, *self._workers.values()) if member.alive]
        told = {member.name: member.activity() for member in members}
        now, silent = time.monotonic(), ("is started", 0.0)
        return {name: (each.phase, now - each.since) if each else silent for name, each in told.items()}

    def _check_directory(self) -> None:
        """Files that are open work on without their directory, or with another in its place; but nothing is kept."""
        try:
            there = self._directory.ledger.stat()
        except FileNotFoundError:
            raise directory_gone(self._directory) from None
        if not os.path.samestat(there, self._ledger_file):
            raise directory_gone(self._directory)

    def _replace_dead_workers(self) -> None:
        for name, worker in self._workers.items():
            if worker.alive or self._ledger.state() != RUNNING:
                continue
            leases = self._ledger.release(name)
            ended, back = f"{name} {worker.last_error() or 'ended'}", f"{leases} leases went back to the pool"
            self._ledger.record_event("worker died", f"{ended}; {back}")
            if self._restarts_left[name] == 0:
                self._ledger.set_state(STOPPING)
                self._fail(f"{ended}; {back}, and it has no restarts left", worker)
            self._restarts_left[name] -= 1
            self._show(f"{ended}; {back}; it is started again")
            self._watchdog.reset(time.monotonic())
            self._workers[name] = self._start_worker(name)

    def _kill_silent_worker(self) -> None:
        """One that hangs, or was stopped, holds no leases by then; killed, it is replaced like any dead worker."""
        paused = {name for name, worker in self._workers.items() if worker.paused}
        silences = self._silences()
        # One that is paused may hold the ledger, and so be the reason of the others' silence.
        for name in sorted(silences, key=lambda name: name not in paused):
            up = self._heartbeats.is_up(name) or name in paused
            silent_seconds = SILENT_LEASES * self._config.rollouts.lease_seconds
            limit = silent_seconds if up else self._config.runtime.start_seconds
            if silences[name] <= limit:
                continue
            worker = self._workers[name]
            was_doing = doing(worker.activity(), name in paused, time.monotonic())
            # They stay in its log.
            worker.stacks()
            # Before the ledger is written to: the worker may be in the middle of a transaction.
            worker.kill()
            what = f"{name} had not reported for {silences[name]:.0f} s and is killed; it {was_doing}"
            self._ledger.record_event("worker silent", what)
            self._show(what)
            self._heartbeats.reset(time.monotonic())
            return

    def _silences(self) -> dict[str, float]:
        """Seconds since the last report of each living rollout worker."""
        counters, now = self._ledger.workers(), time.monotonic()
        return {
            name: self._heartbeats.silence(name, counters.get(name, Counters()), now)
            for name, worker in self._workers.items()
            if name != EVALUATOR and worker.alive
        }

    def _check_progress(self) -> None:
        evaluations = sum(map(len, self._ledger.evaluations().values()))
        limit = self._watchdog.exceeded(self._ledger.status(), evaluations, time.monotonic())
        if limit is not None:
            self._stand_still(f"no step was finished and no group committed for {limit:g} s")

    def _stand_still(self, what: str) -> NoReturn:
        """Find out who waits for whom, write it down, and give up."""
        ledger = self._ledger
        status, processes = ledger.status(), self._examine()
        waiting = who_waits(processes, time.monotonic(), status, ledger.plan.groups_per_step)
        path = self._directory.stall(status.step)
        what = f"the run stands still at step {status.step} of {ledger.plan.steps}: {what}"
        write_stacks(path, f"{what}\n{waiting}", processes)
        ledger.record_event("stall", f"{what}; {path}")
        ledger.set_state(STOPPING)
        if any(process.name == LEARNER and process.waits_for_groups for process in processes):
            self._learner.wait(STOP_SECONDS)
        raise RunError(f"{what}\n{waiting}\nthe stacks of these processes are in {path}; {self._hint}")

    def _examine(self) -> list[Examined]:
        alive = [member for member in (self._learner, *self._workers.values()) if member.alive]
        silences = self._silences()
        # Before any of them is made to go on.
        seen = [(member.paused, member.activity()) for member in alive]
        with ThreadPoolExecutor(len(alive) or 1) as pool:
            stacks = list(pool.map(lambda member: member.stacks(), alive))
        return [
            Examined(member.name, member.where, paused, activity, silences.get(member.name), text)
            for member, (paused, activity), text in zip(alive, seen, stacks, strict=True)
        ]

    def _restart_dead_server(self) -> None:
        """The address stays the same; the workers' engine brings it the weights again."""
        if self._server is None or self._server.alive:
            return
        words = self._server.last_words()
        self._ledger.record_event("server died", words)
        if self._server_restarts_left == 0:
            self._ledger.set_state(STOPPING)
            raise RunError(f"vLLM died, and has no restarts left: {words}\n{self._hint}")
        self._server_restarts_left -= 1
        self._show("vLLM died; it is started again")
        self._server.restart()


def resume_hint(directory: RunDirectory) -> str:
    """How to go on with a run."""
    return f"go on with: {command_line('driftproof', 'train', '--resume', directory.path)}"


def directory_gone(directory: RunDirectory) -> RunError:
    """The error for a run whose directory does not exist any more."""
    return RunError(
        f"run directory {directory.path} was removed or moved while the run was working on it; everything is stopped, "
        "as nothing more can be kept. If it was moved, go on with: driftproof train --resume NEW-PLACE"
    )
