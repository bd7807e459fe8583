import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from driftproof.errors import CheckpointError
from driftproof.learner.checkpoint import load_checkpoint, save_checkpoint
from driftproof.learner.learner import Learner
from driftproof.learner.policy import Policy
from driftproof.learner.settings import LearnerSettings
from driftproof.objectives import build
from driftproof.types import Batch, Group
from driftproof.weights.checkpoints import check_checkpoint, is_whole, list_checkpoints
from tests.groups import make_batch, random_groups

from .tiny import tiny_learner, tiny_model


def train(learner: Learner, *steps: int) -> list[dict[str, float]]:
    return [learner.train(make_batch(*random_groups(step), step=step)) for step in steps]


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_loaded_checkpoint_goes_on_bit_for_bit(architecture: str, bfloat16: bool, tmp_path: Path):
    """Weights (tied in qwen3), moments, step and schedule."""

    def make() -> Learner:
        return tiny_learner(architecture=architecture, bfloat16=bfloat16, schedule="cosine", weight_decay=0.1)

    unbroken, first, second = make(), make(), make()
    train(unbroken, 1, 2, 3)
    train(first, 1, 2, 3)
    path = save_checkpoint(tmp_path, first)
    load_checkpoint(path, second)
    assert second.step == 3
    assert train(second, 4, 5, 6) == train(unbroken, 4, 5, 6)
    for ours, theirs in zip(second.policy.model.parameters(), unbroken.policy.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("objective", ["asympo", "ppo"])
def test_a_checkpoint_of_format_1_is_read(objective: str, tmp_path: Path):
    """It knew parameters by their numbers."""

    def batch(step: int) -> Batch:
        return make_batch(*random_groups(step, behavior_logprobs=objective == "ppo"), step=step)

    learner, again = tiny_learner(objective), tiny_learner(objective)
    learner.train(batch(1))
    path = save_checkpoint(tmp_path, learner)
    numbers = {name: number for number, name in enumerate(learner.policy.trained_parameters())}
    moments = {key.rpartition("."): tensor for key, tensor in load_file(path / "optimizer.safetensors").items()}
    by_number = {f"{numbers[name]}.{moment}": tensor for (name, _, moment), tensor in moments.items()}
    save_file(by_number, path / "optimizer.safetensors", metadata={"format": "pt"})
    (path / "state.json").write_text(json.dumps({"format_version": 1, "step": 1}))
    assert is_whole(path)
    load_checkpoint(path, again)
    assert again.train(batch(2)) == learner.train(batch(2))
    ours, theirs = again.policy.trained_parameters(), learner.policy.trained_parameters()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_optimizers_tensors_have_the_names_of_the_parameters(tmp_path: Path):
    learner = tiny_learner()
    train(learner, 1)
    found = load_file(save_checkpoint(tmp_path, learner) / "optimizer.safetensors")
    names = learner.policy.trained_parameters()
    assert set(found) == {f"{name}.{moment}" for name in names for moment in ("step", "exp_avg", "exp_avg_sq")}


def test_a_checkpoint_that_is_refused_leaves_the_learner_as_it_was(tmp_path: Path):
    other = tiny_learner(architecture="llama", seed=1)
    train(other, 1)
    path = save_checkpoint(tmp_path, other)
    learner, expected = tiny_learner(), tiny_learner()
    with pytest.raises(CheckpointError, match="is of another model"):
        load_checkpoint(path, learner)
    assert train(learner, 1) == train(expected, 1)


def test_a_checkpoint_of_an_untrained_learner_can_be_loaded(tmp_path: Path):
    load_checkpoint(save_checkpoint(tmp_path, tiny_learner()), learner := tiny_learner(seed=1))
    assert learner.step == 0
    assert train(learner, 1) == train(tiny_learner(), 1)


def test_nothing_is_pickled_and_tied_weights_are_written_once(tmp_path: Path):
    learner = tiny_learner()
    train(learner, 1)
    path = save_checkpoint(tmp_path, learner)
    assert sorted(file.name for file in path.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    for file in path.glob("*.safetensors"):
        header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
        assert "lm_head.weight" not in header
    parameters = sum(parameter.numel() for parameter in learner.policy.model.parameters())
    size = (path / "model.safetensors").stat().st_size
    assert 4 * parameters < size < 4 * parameters + 10_000


def test_the_newest_two_are_kept_and_partial_ones_are_not_seen(tmp_path: Path):
    learner = tiny_learner()
    assert list_checkpoints(tmp_path) == []
    for step in (1, 2, 3):
        train(learner, step)
        save_checkpoint(tmp_path, learner)
    (tmp_path / ".partial-step-00000004").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    train(learner, 4)
    save_checkpoint(tmp_path, learner)
    save_checkpoint(tmp_path, learner)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
    assert not list(tmp_path.glob(".partial*"))


def test_a_value_head_is_kept_and_belongs_to_its_objective(tmp_path: Path):
    def groups(step: int) -> list[Group]:
        return random_groups(step, behavior_logprobs=True)

    critic, again = tiny_learner("ppo"), tiny_learner("ppo")
    critic.train(make_batch(*groups(1)))
    path = save_checkpoint(tmp_path / "ppo", critic)
    load_checkpoint(path, again)
    assert again.train(make_batch(*groups(2), step=2)) == critic.train(make_batch(*groups(2), step=2))
    with pytest.raises(CheckpointError, match="has a value head, and objective 'grpo' needs none"):
        load_checkpoint(path, tiny_learner("grpo"))
    plain = save_checkpoint(tmp_path / "grpo", tiny_learner("grpo"))
    with pytest.raises(CheckpointError, match="has no value head, and objective 'ppo' needs one"):
        load_checkpoint(plain, tiny_learner("ppo"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path):
    path = save_checkpoint(tmp_path, tiny_learner())
    with pytest.raises(
        CheckpointError, match=r"is of another model: \['lm_head.weight', .* are missing, not known, or of"
    ):
        load_checkpoint(path, tiny_learner(architecture="llama"))
    wider = Learner(Policy(tiny_model(intermediate_size=64)), build("naive"), LearnerSettings(), steps=1)
    with pytest.raises(CheckpointError, match=r"is of another model: \['model.layers.0.mlp.down_proj.weight', "):
        load_checkpoint(path, wider)


def test_what_cannot_be_read_is_refused(tmp_path: Path):
    path = save_checkpoint(tmp_path, tiny_learner())
    with pytest.raises(CheckpointError, match=r"step-00000007/state.json cannot be read: .*No such file"):
        load_checkpoint(tmp_path / "step-00000007", tiny_learner())
    (path / "state.json").write_text(json.dumps({"format_version": 99, "step": 0}))
    with pytest.raises(CheckpointError, match="has checkpoint format 99; this driftproof reads 1 and 2"):
        load_checkpoint(path, tiny_learner())
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path, tiny_learner())
    (path / "optimizer.safetensors").write_bytes(b"?")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path, tiny_learner())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The directory that a run began with."""
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "value_head.safetensors", "state.json"])
@pytest.mark.parametrize("left", [0, 7, 0.5, -1])
def test_a_file_that_is_cut_off_is_found_by_its_header(name: str, left: float, model: Path, tmp_path: Path):
    critic = tiny_learner("ppo")
    critic.train(make_batch(*random_groups(1, behavior_logprobs=True)))
    path = save_checkpoint(tmp_path, critic)
    check_checkpoint(path, model)
    assert is_whole(path)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: left if isinstance(left, int) else int(len(content) * left)])
    with pytest.raises(CheckpointError, match=f"step-00000001/{name} (is cut off|has [0-9,]+ bytes|cannot be read)"):
        check_checkpoint(path, model)
    assert not is_whole(path)
    (path / name).unlink()
    if name != "value_head.safetensors":
        with pytest.raises(CheckpointError, match=f"step-00000001/{name} (is missing|cannot be read)"):
            check_checkpoint(path, model)
        assert not is_whole(path)


def test_a_checkpoint_of_another_model_or_step_is_found(model: Path, tmp_path: Path):
    wider = Learner(Policy(tiny_model(intermediate_size=64)), build("naive"), LearnerSettings(), steps=1)
    with pytest.raises(CheckpointError, match=r"is not of the model .*model: \['model.layers.0.mlp.down_proj.w"):
        check_checkpoint(save_checkpoint(tmp_path / "wider", wider), model)
    path = save_checkpoint(tmp_path, tiny_learner())
    with pytest.raises(CheckpointError, match=r"state.json is of step 0; its directory is of another"):
        check_checkpoint(path.rename(tmp_path / "step-00000009"), model)
