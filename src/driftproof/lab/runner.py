"""A grid, run in as many processes as there are cores.

Guarantees: a finished run is on disk, whole, before it counts; one that was cut off is run again from its start, and
gives the same numbers; nothing that is there is run again. Results of other settings are refused, not mixed. No process
outlives the grid, however it ends.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path

from driftproof.engines.settings import EngineSettings
from driftproof.errors import ConfigError, RunError
from driftproof.lab.experiment import Result, run
from driftproof.lab.grid import Cell, best_rates, cell_config, grid_cells, planned_cells, tuning_cells
from driftproof.lab.settings import LabConfig
from driftproof.lab.staleness import make_staleness
from driftproof.run import written_whole
from driftproof.runtime.build import make_task
from driftproof.runtime.preflight import Say, preflight
from driftproof.runtime.resources import limit_threads, quiet_libraries
from driftproof.weights.hub import origin_of
from driftproof.weights.models import earlier_fingerprint, fingerprint_weights

PRELOADED = ["driftproof.lab.runner", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"]
"""Modules imported once, in the process that the grid's are forked from."""

UPKEEP = {"threads", "publish_every", "keep_snapshots", "checkpoint_every", "keep_groups", "max_skipped", "on_collapse"}
NOT_DETERMINING: dict[str, bool | set[str]] = {
    "tracking": True,
    "runtime": True,
    "verify": True,
    "run": {"name", "directory", "recipe_directory"},
    "engine": {setting.name for setting in fields(EngineSettings)} - {"name", "slots", "device"},
    "evaluation": {"every"},
    "rollouts": {"recorded_share"},
    "learner": UPKEEP,
}
"""Settings that a run of the lab does not have, or whose numbers do not depend on them."""
ADDED: dict[str, dict[str, object]] = {
    "model": {"revision": None, "chat_template_kwargs": {}},
    "task": {"too_long": "refuse", "max_characters": 1_000_000},
}
"""Settings that came later, with the values under which a run is the same as before."""


def run_grid(config: LabConfig, directory: Path, progress: Callable[[int, int], object]) -> list[Result]:
    """Make the runs that are missing; all results, tuning runs first. `progress` gets how many are done, of how many.

    Raises:
        ConfigError: results of other settings are there, or the directory cannot be written.
        RunError: a process was killed.
    """
    check_grid(config)
    # Refuses results of other settings before anything is written over.
    read_results(config, directory)
    try:
        (directory / "runs").mkdir(parents=True, exist_ok=True)
        base, of_base = directory / "base.json", json.dumps({"base": fingerprint_weights(config.model.path)})
        if base.is_file() and base.read_text() not in (of_base, json.dumps({"base": _earlier_base(config)})):
            raise ConfigError(
                f"{directory} has results of another base policy than the one that {config.model.path} holds now; "
                "choose another --lab.directory"
            )
        base.write_text(of_base)
        (directory / "config.toml").write_text(config.to_toml())
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}") from error
    tuning, total = tuning_cells(config), len(planned_cells(config))
    tuned = _run_cells(config, tuning, directory, lambda done: progress(done, total))
    cells = grid_cells(config, tuned_rates(config, tuned))
    return [*tuned, *_run_cells(config, cells, directory, lambda done: progress(len(tuned) + done, total))]


def _earlier_base(config: LabConfig) -> str:
    """The base policy as earlier versions wrote it."""
    return fingerprint_weights(config.model.path, earlier_fingerprint(config.model.path))


def check_grid(config: LabConfig, warn: Say = lambda _: None, tell: Say = lambda _: None) -> None:
    """Check everything that can be checked without starting; `warn` and `tell` as in `preflight`, each text once."""
    said = set[str]()

    def once(say: Say, text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    if (engine := config.engine.name) != "embedded":
        raise ConfigError(f"the lab writes its own responses; engine.name must be 'embedded', got {engine!r}")
    # Runs of one objective are right or wrong together.
    for cell in {cell.label: cell for cell in planned_cells(config) if cell.lr}.values():
        preflight(cell_config(config, cell), lambda text: once(warn, text), lambda text: once(tell, text))
    if not config.evaluation.prompts or not make_task(config).heldout:
        needs = f"task {config.task.name!r} must have some, and evaluation.prompts must not be 0"
        raise ConfigError(f"the lab measures accuracy on held-out prompts: {needs}")
    for staleness in config.lab.staleness:
        make_staleness(config, staleness)


def read_results(config: LabConfig, directory: Path) -> list[Result]:
    """The results that are on disk, tuning runs first; those that are missing are left out."""
    tuned = _found(config, tuning_cells(config), directory)
    cells = grid_cells(config, tuned_rates(config, tuned))
    return [*tuned, *_found(config, [cell for cell in cells if cell.lr], directory)]


def tuned_rates(config: LabConfig, results: Sequence[Result]) -> dict[str, float]:
    """The learning rate of each label by the sweep; {} while a run of it is missing."""
    finals = {result.cell.key: result.final for result in results}
    cells = tuning_cells(config)
    whole = all(cell.key in finals for cell in cells)
    return best_rates(cells, [finals[cell.key] for cell in cells]) if whole else {}


def _run_cells(
    config: LabConfig, cells: Sequence[Cell], directory: Path, progress: Callable[[int], object]
) -> list[Result]:
    there = {result.cell.key for result in _found(config, cells, directory)}
    missing = [cell for cell in cells if cell.key not in there]
    progress(len(cells) - len(missing))
    if missing:
        processes = min(config.lab.processes or len(os.sched_getaffinity(0)), len(missing))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        others = set(multiprocessing.active_children())
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_enter) as pool:
            try:
                waiting = {pool.submit(run_cell, config.to_toml(), cell, directory) for cell in missing}
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    progress(len(cells) - len(waiting))
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                # What is under way would take its time, and is run again anyway.
                for process in set(multiprocessing.active_children()) - others:
                    process.kill()
                if isinstance(error, BrokenProcessPool):
                    raise RunError(
                        "a process of the grid was killed, maybe because memory ran out; what is done is kept, and the "
                        "same command goes on; --lab.processes N sets how many run at a time"
                    ) from error
                raise
    return _found(config, cells, directory)


def _enter() -> None:
    """Leave Ctrl-C to the grid's own process, and end when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_libraries()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def run_cell(recipe: str, cell: Cell, directory: Path) -> None:
    """Run one cell on one thread and write its result."""
    limit_threads(1)
    config = LabConfig.from_toml(recipe)
    result = run(config, cell)
    content = {"settings": settings_hash(config, cell), "seconds": result.seconds}
    content |= {"rows": result.rows, "signals": result.signals}
    with written_whole(_result_file(directory, cell)) as partial:
        partial.write_text(json.dumps(content))


def _found(config: LabConfig, cells: Sequence[Cell], directory: Path) -> list[Result]:
    results = []
    for cell in cells:
        if (path := _result_file(directory, cell)).is_file():
            content = json.loads(path.read_text())
            if content.pop("settings") != settings_hash(config, cell):
                advice = "choose another --lab.directory, or remove it"
                raise ConfigError(f"{path} is the result of other settings than these; {advice}")
            results.append(Result(cell=cell, **content))
    return results


def _result_file(directory: Path, cell: Cell) -> Path:
    return directory / "runs" / f"{cell.key}.json"


def settings_hash(config: LabConfig, cell: Cell) -> str:
    """A hash of all that determines a run's numbers."""
    resolved = cell_config(config, cell).model_dump(mode="json", exclude=NOT_DETERMINING)
    learner = config.learner
    if origin := origin_of(config.model.path):
        resolved["model"]["path"] = origin[0]
    for section, added in ADDED.items():
        for name in [name for name, default in added.items() if resolved[section][name] == default]:
            del resolved[section][name]
    # Settings that were, with the values that they have now: results of earlier versions stay valid.
    resolved["learner"] |= {"token_budget": learner.positions, "row_tokens": learner.row_tokens, "entropy": True}
    lab = {name: str(getattr(config.lab, name)) for name in ("schedule", "replay", "evaluate_every")}
    text = json.dumps([resolved, lab, cell.staleness], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
