"""The learner's whole state on disk: weights, optimizer, step. Whole or not there; never pickle.

`checkpoints/step-00000042` holds `model.safetensors`, `optimizer.safetensors`, `state.json` and, where the policy has a
value head, `value_head.safetensors`. It is written under another name, fsynced and renamed; the newest two are kept.
The optimizer's tensors are named `PARAMETER.MOMENT`; in format 1 a parameter was its number.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from driftproof.errors import CheckpointError, DamageError, ModelError
from driftproof.faults import fault_points
from driftproof.learner.learner import Learner
from driftproof.run import fsync, partial_name, remove_at_once, rename_durably, step_directory
from driftproof.weights.checkpoints import FORMAT_VERSION, OPTIMIZER, STATE, VALUE_HEAD, list_checkpoints, read_state
from driftproof.weights.files import WEIGHTS, TensorFile, write_tensors

KEPT = 2


def save_checkpoint(directory: Path, learner: Learner) -> Path:
    """Write the learner's state after its current step; one of that step that is there already is kept."""
    path = step_directory(directory, learner.step)
    if path.exists():
        return path
    for left_behind in directory.glob(".partial-*"):
        shutil.rmtree(left_behind)
    partial = partial_name(path)
    partial.mkdir(parents=True)
    with fault_points("checkpoint write"):
        _write(partial, learner)
    with fault_points("checkpoint rename"):
        rename_durably(partial, path)
    with fault_points("checkpoint prune"):
        for old in list_checkpoints(directory)[:-KEPT]:
            remove_at_once(old)
    return path


def _write(partial: Path, learner: Learner) -> None:
    policy, optimizer = learner.policy, learner.optimizer.state
    write_tensors(partial / WEIGHTS, policy.state())
    if policy.value_head is not None:
        write_tensors(partial / VALUE_HEAD, policy.value_head.state_dict())
    moments = {
        f"{name}.{moment}": value
        for name, parameter in policy.trained_parameters().items()
        for moment, value in optimizer.get(parameter, {}).items()
    }
    write_tensors(partial / OPTIMIZER, moments)
    (partial / STATE).write_text(json.dumps({"format_version": FORMAT_VERSION, "step": learner.step}))
    fsync(partial / STATE)


def load_checkpoint(path: Path, learner: Learner) -> None:
    """Bring a learner, made from the same configuration, to the checkpoint's state.

    Raises:
        CheckpointError: a file missing or broken, another format, or another model's; the learner is as it was.
    """
    version, step = read_state(path)
    try:
        weights, moments = (_read(path / name) for name in (WEIGHTS, OPTIMIZER))
        values = _read(path / VALUE_HEAD) if (path / VALUE_HEAD).exists() else {}
    except (OSError, DamageError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    value_head = learner.policy.value_head
    if bool(values) != (value_head is not None):
        raise CheckpointError(
            f"{path} has {'a' if values else 'no'} value head, and objective {learner.objective.name!r} needs "
            f"{'none' if values else 'one'}; go on with the objective it was made with"
        )
    if value_head is not None and _shapes(values) != _shapes(value_head.state_dict()):
        raise CheckpointError(f"{path} is of another model: its value head has other tensors")
    try:
        optimizer = _optimizer_state(moments, learner, by_number=version == 1)
        learner.policy.load_state(weights)
    except ModelError as error:
        raise CheckpointError(f"{path} is of another model: {error}") from error
    if value_head is not None:
        value_head.load_state_dict(values)
    learner.optimizer.load_state_dict(learner.optimizer.state_dict() | {"state": optimizer})
    learner.step = step


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, copied: the optimizer keeps what it is given."""
    return {name: tensor.clone() for name, tensor in TensorFile(path).items()}


def _optimizer_state(moments: Mapping[str, Tensor], learner: Learner, by_number: bool) -> dict[int, dict[str, Tensor]]:
    """AdamW's state by a parameter's number, in the parameter's shape, or none where it had no gradient yet."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        owner, _, moment = key.rpartition(".")
        found.setdefault(owner, {})[moment] = value
    optimizer = {}
    for number, (name, parameter) in enumerate(learner.policy.trained_parameters().items()):
        if state := found.pop(str(number) if by_number else name, None):
            if _shapes(state) != {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
                raise ModelError(f"the optimizer's state of {name} has other tensors")
            optimizer[number] = state
    if found:
        raise ModelError(f"the optimizer has a state of {sorted(found)[:3]}, which this model has not")
    return optimizer


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
