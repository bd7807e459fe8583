"""Inside vLLM: the weight-transfer backend `driftproof`, registered through the entry point `vllm.general_plugins`.

Guarantees: what is no snapshot of the server's model is refused before the first weight is touched; snapshots are
safetensors, never pickle. Importing this module imports neither vLLM nor transformers.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn

from driftproof.engines.vllm import BACKEND
from driftproof.errors import DamageError, EngineError
from driftproof.weights import files
from driftproof.weights.names import is_weight

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a model's tensors by their Hugging Face names."""


def register() -> None:
    """Make the backend known to this process of vLLM; again is harmless, as plug-ins may be loaded several times."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    with suppress(ValueError):
        WeightTransferEngineFactory.register_engine(BACKEND, "driftproof.engines.vllm.transfer", "SnapshotTransfer")


def read_shapes(directory: Path) -> Shapes:
    """The shapes of all tensors in a Hugging Face model directory; no weights are read."""
    try:
        return {name: shape for name, shape in files.read_shapes(directory).items() if is_weight(name)}
    except DamageError as error:
        raise EngineError(f"the weights in {directory} cannot be read: {error}") from error


def read_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a Hugging Face model directory, file by file, in the order of their names."""
    for file in map(files.TensorFile, files.weight_files(directory)):
        for name in sorted(file):
            yield name, file[name]


def check_snapshot(snapshot: Path, model: Path, shapes: Shapes, *, tied: bool) -> None:
    """Refuse what does not have the tensors of the server's `model` (`shapes`); of tied embeddings one is enough."""
    found = read_shapes(snapshot)
    missing = sorted(shapes.keys() - found.keys() - ({"lm_head.weight"} if tied else set()))
    unknown = sorted(found.keys() - shapes.keys())
    other = sorted(name for name in found.keys() & shapes.keys() if found[name] != shapes[name])
    problems = [
        *(f"it has no tensor {name}" for name in missing),
        *(f"it has a tensor {name}, which the server's model has not" for name in unknown),
        *(f"{name} has shape {list(found[name])}, in the server's model {list(shapes[name])}" for name in other),
    ]
    if problems:
        raise EngineError(f"{snapshot} is not a snapshot of {model}, which this server was started from: {problems[0]}")


def refresh_shared(model: nn.Module) -> None:
    """Let every layer whose weight is another's too process it again.

    vLLM's layer-wise reload processes only layers that it loaded a tensor for. On CPU a processed layer holds a packed
    copy of its weight, so an `lm_head` tied to the embeddings would go on with the old one.
    """
    layers = [layer for layer in model.modules() if isinstance(getattr(layer, "weight", None), nn.Parameter)]
    owners = Counter(id(layer.weight) for layer in layers)
    for layer in layers:
        method = getattr(layer, "quant_method", None)
        if owners[id(layer.weight)] > 1 and method is not None:
            method.process_weights_after_loading(layer)
