"""Inside vLLM's workers: weights from a snapshot directory into the model that is served.

Guarantees: after an update every weight is the snapshot's, vLLM's packed copies included; a snapshot that is refused
leaves the model as it was. Written against vLLM 0.32; only vLLM imports this module.
"""

from dataclasses import dataclass
from pathlib import Path

from vllm.distributed.weight_transfer import base
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from driftproof.engines.vllm.plugin import Shapes, check_snapshot, read_shapes, read_tensors, refresh_shared
from driftproof.errors import EngineError


@dataclass
class Nothing(base.WeightTransferInitInfo):  # type: ignore[misc]
    """There is nothing to agree on before the first update."""


@dataclass
class SnapshotUpdate(base.WeightTransferUpdateInfo):  # type: ignore[misc]
    """Which snapshot to read."""

    path: str
    """An absolute path that every worker can open."""


class SnapshotTransfer(base.WeightTransferEngine[Nothing, SnapshotUpdate]):  # type: ignore[misc]
    """One worker's part; each reads the files itself and keeps what vLLM's own loader gives its shard."""

    init_info_cls = Nothing
    update_info_cls = SnapshotUpdate
    supports_draft_weight_update = False

    _shapes: Shapes | None = None
    """Shapes of the model that the server was started from; its directory may be gone later."""

    def init_transfer_engine(self, init_info: Nothing) -> None:
        directory = Path(self.model_config.model)
        if not directory.is_dir():
            raise EngineError(f"this server serves {directory}; start it from a local model directory to update it")
        if self._shapes is None:
            self._shapes = read_shapes(directory)

    def start_weight_update(self) -> None:
        """Nothing: a refusal must find the model untouched."""

    def receive_weights(self, update_info: SnapshotUpdate) -> None:
        if self._shapes is None:
            raise EngineError("init_weight_transfer_engine comes before the first update")
        snapshot, model = Path(update_info.path), Path(self.model_config.model)
        # vLLM unties embeddings whose checkpoint has both, and ties them again when they are equal.
        config = self.model_config
        tied = config.hf_text_config.tie_word_embeddings or config.word_embeddings_untied_by_checkpoint
        check_snapshot(snapshot, model, self._shapes, tied=tied)
        initialize_layerwise_reload(self.model)
        self.model.load_weights(read_tensors(snapshot))
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_shared(self.model)

    def finish_weight_update(self) -> None:
        """Nothing: an update is one call."""

    def shutdown(self) -> None:
        """Nothing is held open."""
