"""Keeping an engine at the newest snapshot of a run."""

from collections.abc import Callable
from pathlib import Path

from driftproof.engines.protocol import Engine
from driftproof.errors import EngineError
from driftproof.weights.snapshots import latest


class WeightFollower:
    """Loads every newer snapshot that it finds; one that cannot be loaded is skipped while older weights serve."""

    def __init__(
        self, engine: Engine, snapshots: Path, *, phase: Callable[[str], object], refused: Callable[[str], object]
    ) -> None:
        """`phase` is told when a load begins, `refused` which snapshot was skipped, and why."""
        self.snapshots = snapshots
        self.loaded_step = -1
        """Step of the weights that the engine has; -1 are those it was opened with."""
        self._refused_step = -1
        self._engine = engine
        self._phase = phase
        self._refused = refused

    def follow(self) -> None:
        """Load the newest snapshot, unless the engine has it already or takes none.

        Raises:
            EngineError: the first snapshot cannot be loaded. FileNotFoundError: the newest is not whole.
        """
        if not self._engine.capabilities.follows_weights:
            return
        snapshot = latest(self.snapshots)
        while snapshot is not None and snapshot.step not in (self.loaded_step, self._refused_step):
            self._phase(f"loads the weights of step {snapshot.step}")
            try:
                self._engine.load(snapshot.path)
            except FileNotFoundError:
                newer = latest(self.snapshots)
                if newer == snapshot:
                    raise
                # Pruned between our look and our read: there is a newer one.
                snapshot = newer
            except EngineError as error:
                if self.loaded_step < 0:
                    raise
                self._refused_step = snapshot.step
                self._refused(f"{snapshot.path}: {error}; the engine goes on with step {self.loaded_step}")
            else:
                self.loaded_step = snapshot.step
