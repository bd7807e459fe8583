import contextlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from driftproof.errors import DamageError
from driftproof.weights.files import WEIGHTS, other_files, read_header
from driftproof.weights.snapshots import Publisher, Snapshot, discard_after, latest, list_snapshots


def state(value: float, size: int = 8) -> dict[str, torch.Tensor]:
    return {"a": torch.full((size,), value), "b": torch.full((2, 3), value)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model directory with everything that can lie in one; two shards of weights."""
    path = tmp_path / "base"
    path.mkdir()
    (path / "additional_chat_templates").mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "vocab.txt"):
        (path / name).write_text(json.dumps(name))
    (path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        (path / name).write_text("weights of the base model")
    (path / "original").mkdir()
    return path


def publisher(tmp_path: Path, keep: int = 3) -> Publisher:
    return Publisher(tmp_path / "snapshots", tmp_path / "base", keep=keep)


def steps(directory: Path) -> list[int]:
    return [snapshot.step for snapshot in list_snapshots(directory)]


def test_latest_names_the_newest_snapshot(base: Path, tmp_path: Path):
    snapshots = tmp_path / "snapshots"
    assert latest(snapshots) is None
    publish = publisher(tmp_path)
    assert latest(snapshots) is None
    assert publish.published() == -1
    for step in (0, 1, 12):
        published = publish.publish(step, state(step))
        assert published == latest(snapshots) == Snapshot(step=step, path=snapshots / f"step-{step:08d}")
        publish.wait()
        assert publish.published() == step
        torch.testing.assert_close(load_file(published.path / WEIGHTS), state(step))
    assert not list(snapshots.glob(".partial*"))


def test_directories_of_other_names_are_no_snapshots(base: Path, tmp_path: Path):
    publisher = Publisher(tmp_path / "snapshots", base)
    first = publisher.publish(7, {"w": torch.zeros(1)})
    for name in ("step-00000042.bak", "step-42", "step-0000004x"):
        (publisher.directory / name).mkdir()
    assert list_snapshots(publisher.directory) == [first]


def test_old_snapshots_are_pruned(base: Path, tmp_path: Path):
    publish = publisher(tmp_path, keep=2)
    for step in range(5):
        publish.publish(step, state(step))
    assert steps(tmp_path / "snapshots") == [3, 4]


def test_keeping_one_snapshot_is_refused(base: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="keep is 1; at least 2"):
        publisher(tmp_path, keep=1)


def test_all_but_the_weights_of_the_base_is_copied_and_shared_with_nobody(base: Path, tmp_path: Path):
    """An index of shards beside the new weights would make readers open the old ones."""
    before = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    publish = publisher(tmp_path)
    first, path = publish.publish(0, state(0)).path, publish.publish(1, state(1)).path
    names = {"config.json", "tokenizer.json", "chat_template.jinja", "vocab.txt"}
    assert {file.name for file in path.iterdir()} == names | {WEIGHTS, "additional_chat_templates"}
    copied = [*names, "additional_chat_templates/tool_use.jinja"]
    assert all((path / name).stat().st_nlink == 1 for name in copied)
    for name in copied:
        (path / name).write_text("changed in place")
        assert (first / name).read_bytes() == (base / name).read_bytes()
    assert {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()} == before


def test_links_of_the_hubs_cache_become_files(base: Path, tmp_path: Path):
    cached = in_the_cache(base, tmp_path / "hub" / "models--me--tiny")
    assert (cached / "config.json").is_symlink()
    path = Publisher(tmp_path / "snapshots", cached).publish(1, state(1)).path
    files = [file for file in path.rglob("*") if not file.is_dir()]
    assert len(files) == 6
    assert not any(file.is_symlink() for file in files)
    assert (path / "vocab.txt").read_text() == '"vocab.txt"'


@pytest.mark.parametrize("target", ["secret", "../secret", "blobs/../../secret"])
def test_a_link_out_of_the_model_is_refused(base: Path, tmp_path: Path, target: str):
    cached = in_the_cache(base, tmp_path / "hub" / "models--me--tiny")
    for secret in (tmp_path / "secret", tmp_path / "hub" / "secret", cached.parent.parent / "secret"):
        secret.write_text('{"key": "sk-1"}')
    (cached / "extra.json").symlink_to(Path("../..") / target)
    with pytest.raises(DamageError, match=r"extra\.json is a link that leads out of the model"):
        Publisher(tmp_path / "snapshots", cached).publish(1, state(1))
    with pytest.raises(DamageError):
        other_files(cached)
    assert list_snapshots(tmp_path / "snapshots") == []


def in_the_cache(model: Path, repository: Path) -> Path:
    """A copy of a model directory as the hub's library keeps it: a folder of links to blobs."""
    snapshot = repository / "snapshots" / ("c" * 40)
    for file in [path for path in model.rglob("*") if path.is_file()]:
        name = file.relative_to(model)
        blob = repository / "blobs" / str(name).replace("/", "-")
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "bfloat16", "a": 1}, {"dtype": "float32", "a": 1}),
        ({"torch_dtype": "float16"}, {"torch_dtype": "float32"}),
        (
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "b": 2}},
            {"dtype": "float32", "text_config": {"dtype": "float32", "b": 2}},
        ),
        ({"dtype": "float32"}, None),
        ({"a": 1}, None),
    ],
)
def test_the_configuration_names_the_type_of_the_weights_beside_it(
    base: Path, tmp_path: Path, config: dict[str, object], expected: dict[str, object] | None
):
    (base / "config.json").write_text(json.dumps(config))
    path = publisher(tmp_path).publish(1, state(1.0)).path
    if expected is None:
        assert (path / "config.json").read_bytes() == (base / "config.json").read_bytes()
    else:
        assert json.loads((path / "config.json").read_text()) == expected
    assert {stored.dtype for stored in read_header(path / WEIGHTS).values()} == {"F32"}


def test_snapshots_after_a_step_are_discarded(base: Path, tmp_path: Path):
    publish = publisher(tmp_path, keep=9)
    for step in range(5):
        publish.publish(step, state(step))
    discard_after(tmp_path / "snapshots", 2)
    snapshots = tmp_path / "snapshots"
    assert steps(snapshots) == [0, 1, 2]
    assert latest(snapshots) is None
    publish.publish(2, state(2))
    assert latest(snapshots) == Snapshot(step=2, path=snapshots / "step-00000002")


def test_what_an_earlier_process_left_half_written_is_swept_and_never_seen(base: Path, tmp_path: Path):
    publisher(tmp_path).publish(1, state(1))
    partial = tmp_path / "snapshots" / ".partial-step-00000002"
    partial.mkdir()
    (partial / WEIGHTS).write_bytes(b"half")
    assert steps(tmp_path / "snapshots") == [1]
    publisher(tmp_path)
    assert not partial.exists()


def test_a_failing_write_leaves_the_latest_as_it_was(base: Path, tmp_path: Path):
    publish = publisher(tmp_path)
    publish.publish(1, state(1))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    program = f"""
import sys, torch, signal
from pathlib import Path
from driftproof.weights.snapshots import Publisher
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
publisher = Publisher(Path(sys.argv[1]) / "snapshots", Path(sys.argv[1]) / "base")
{limit}
try:
    publisher.publish(2, {{"a": torch.zeros(100_000)}})
except OSError as error:
    print("OSError", error)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("OSError"), done.stderr[-500:]
    assert latest(tmp_path / "snapshots") == Snapshot(step=1, path=tmp_path / "snapshots" / "step-00000001")
    assert steps(tmp_path / "snapshots") == [1]


def test_killed_at_any_moment_every_visible_snapshot_is_whole(base: Path, tmp_path: Path):
    """A process that publishes without pause is killed again and again; the next goes on after the newest snapshot."""
    snapshots = tmp_path / "snapshots"
    generator = random.Random(0)
    seen = -1
    for _ in range(8):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                publish = publisher(tmp_path, keep=2)
                newest = list_snapshots(snapshots)
                for step in range(newest[-1].step + 1 if newest else 0, 10**6):
                    publish.publish(step, state(step, size=20_000))
            os._exit(1)
        while (newest := latest(snapshots)) is None or newest.step < seen + 3:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.01))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        for snapshot in list_snapshots(snapshots):
            torch.testing.assert_close(load_file(snapshot.path / WEIGHTS), state(snapshot.step, size=20_000))
            assert (snapshot.path / "config.json").read_text() == '"config.json"'
        newest = latest(snapshots)
        assert newest is not None
        assert newest in list_snapshots(snapshots)
        seen = newest.step


def test_killed_while_removing_no_part_of_a_snapshot_stays_visible(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    publish = publisher(tmp_path, keep=2)
    for step in range(2):
        publish.publish(step, state(step))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    publish.publish(2, state(2))
    assert steps(tmp_path / "snapshots") == [1, 2]
    discard_after(tmp_path / "snapshots", 1)
    assert steps(tmp_path / "snapshots") == [1]


def test_a_snapshot_that_is_there_already_is_made_the_latest(base: Path, tmp_path: Path):
    publish = publisher(tmp_path)
    publish.publish(1, state(1))
    discard_after(tmp_path / "snapshots", 1)
    assert publish.publish(1, state(1)) == latest(tmp_path / "snapshots")


def test_a_snapshot_is_readable_by_other_users_as_far_as_the_umask_says(base: Path, tmp_path: Path):
    path = publisher(tmp_path).publish(1, state(1)).path
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((path / WEIGHTS).stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.slow
def test_transformers_opens_a_snapshot_in_another_process(tiny_model_dir: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    snapshot = Publisher(tmp_path / "snapshots", tiny_model_dir).publish(7, model.state_dict())
    expected = model(input_ids=torch.tensor([[3, 4, 5]])).logits
    torch.save(expected.detach(), tmp_path / "expected.pt")
    program = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, loading = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
assert AutoTokenizer.from_pretrained(sys.argv[1]).encode("1+2=")
expected = torch.load(sys.argv[2], weights_only=True)
torch.testing.assert_close(model(input_ids=torch.tensor([[3, 4, 5]])).logits, expected, rtol=0, atol=0)
assert model.lm_head.weight is model.model.embed_tokens.weight
"""
    done = subprocess.run(
        [sys.executable, "-c", program, snapshot.path, tmp_path / "expected.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
