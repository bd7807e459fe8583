"""Files of the learner's checkpoints: their names, and whether they are whole.

Names, sizes and headers tell; no tensor is read, so that it takes no time however large a model is.
"""

import json
from pathlib import Path
from typing import Any

from driftproof.errors import CheckpointError, DamageError
from driftproof.run import step_directories, step_of
from driftproof.weights.files import WEIGHTS, read_header, read_shapes

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
VALUE_HEAD = "value_head.safetensors"


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return list(step_directories(directory).values())


def is_whole(checkpoint: Path) -> bool:
    """Whether a run could go on from a checkpoint."""
    return not checkpoint_problems(checkpoint)


def checkpoint_problems(checkpoint: Path) -> list[str]:
    """A sentence on each file of a checkpoint that is missing, cut off, or of another step than its directory."""
    names = [WEIGHTS, OPTIMIZER, *([VALUE_HEAD] if (checkpoint / VALUE_HEAD).exists() else [])]
    problems = [problem for name in names if (problem := weights_problem(checkpoint / name))]
    try:
        _, step = read_state(checkpoint)
    except CheckpointError as error:
        return [*problems, str(error)]
    if step != step_of(checkpoint):
        problems.append(f"{checkpoint / STATE} is of step {step}; its directory is of another")
    return problems


def weights_problem(path: Path) -> str:
    """A sentence on a safetensors file that is missing or not whole, else nothing."""
    try:
        read_header(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except (OSError, DamageError) as error:
        return str(error)
    return ""


def read_state(checkpoint: Path) -> tuple[int, int]:
    """The format version and the step of a checkpoint, from its `state.json`."""
    path = checkpoint / STATE
    try:
        state: Any = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version not in READABLE_VERSIONS:
        valid = " and ".join(map(str, READABLE_VERSIONS))
        raise CheckpointError(f"{path} has checkpoint format {version}; this driftproof reads {valid}")
    step = state.get("step")
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{path} cannot be read: it has the step {step!r}")
    return version, step


def check_checkpoint(checkpoint: Path, model: Path) -> None:
    """Check that a run that began with `model` can go on from a checkpoint.

    Raises:
        CheckpointError: a file is missing, cut off or of another format or model.
    """
    if problems := checkpoint_problems(checkpoint):
        raise CheckpointError(problems[0])
    found = {name: tensor.shape for name, tensor in read_header(checkpoint / WEIGHTS).items()}
    own = read_shapes(model)
    different = sorted(name for name in own.keys() & found.keys() if own[name] != found[name])
    # The files of some models have other names than a checkpoint, which has those that they compute with.
    if different or not (own.keys() & found.keys() or set(own.values()) & set(found.values())):
        what = f"{different[:3]} are of another shape"
        raise CheckpointError(f"{checkpoint / WEIGHTS} is not of the model {model}: {what}")
