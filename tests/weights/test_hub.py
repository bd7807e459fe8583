"""Hub names become directories: downloaded once, found in the cache without a network, refused with a sentence.

The hub's library reads its settings when it is imported, so each of these runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from driftproof.errors import ModelError
from driftproof.weights.hub import find_model, named, origin_of
from tests.weights.fake_hub import COMMIT, NAME, serve

CHILD = """
import json, sys
from pathlib import Path
from driftproof.errors import ModelError
from driftproof.weights.hub import find_model
found = []
for name, revision in json.loads(sys.argv[1]):
    try:
        found.append(str(find_model(Path(name), revision)))
    except ModelError as error:
        found.append("refused: " + str(error))
print(json.dumps(found))
"""


def find(names: list[tuple[str, str | None]], home: Path, **environment: str) -> list[str]:
    """What `find_model` gives or says in a process with the cache at `home`."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(names)], capture_output=True, text=True, env=settings, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: list[str] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def published(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it lies on the hub: with pickles, code, weights of other programs and further chat templates."""
    path = shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("hub") / "tiny")
    for name in ("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "original/model.safetensors"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"not to be downloaded")
    (path / "additional_chat_templates").mkdir()
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        (path / name).write_text("{{ messages[0].content }}")
    return path


def test_a_name_is_downloaded_once_and_found_without_a_network(published: Path, tmp_path: Path) -> None:
    directory = tmp_path / "hub" / "models--me--tiny" / "snapshots" / COMMIT
    with serve(published) as hub:
        page = f"https://huggingface.co/{NAME}/tree/v1"
        names = [
            (NAME, None),
            (NAME, "v1"),
            (f"{NAME}@v1", None),
            (page, None),
            (f"hf:{NAME}", "v1"),
            ("me/tyni", None),
            (NAME, "v9"),
            ("me/gated", None),
        ]
        *found, unknown, revision, gated = find(names, tmp_path, HF_ENDPOINT=hub.url)
        assert found == [str(directory)] * 5
        assert "me/tyni is no model directory here" in unknown
        assert "no such model" in unknown
        assert "driftproof tiny-model me/tyni" in unknown
        assert "no revision 'v9'" in revision
        assert f"me/gated is gated: accept its terms at {hub.url}/me/gated" in gated
        asked = len(hub.asked)
        shutil.rmtree(directory)
        # A directory of the cache, as a run of another machine names it.
        assert find([(str(directory), None)], tmp_path, HF_ENDPOINT=hub.url) == [str(directory)]
        assert len(hub.asked) > asked
    files = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    kept = {path.name for path in published.glob("*.json")}
    templates = {"chat_template.jinja", "additional_chat_templates/tool_use.jinja"}
    assert files == kept | templates | {"model.safetensors"}
    assert (directory / "config.json").is_symlink()
    gone = {"HF_ENDPOINT": hub.url}
    assert find([(NAME, None), (NAME, COMMIT)], tmp_path, **gone) == [str(directory)] * 2
    assert find([(NAME, None)], tmp_path, HF_HUB_OFFLINE="1") == [str(directory)]


def test_without_a_network_a_sentence_says_how(tmp_path: Path) -> None:
    (offline,) = find([("Qwen/Qwen3-0.6B", None)], tmp_path, HF_HUB_OFFLINE="1")
    (refused,) = find([("Qwen/Qwen3-0.6B", "main")], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    for sentence in (offline, refused):
        assert sentence.startswith("refused: Qwen/Qwen3-0.6B is no model directory here, is not in the hub's cache")
        assert "hf download Qwen/Qwen3-0.6B" in sentence
        assert "path of a model directory" in sentence
    assert "HF_HUB_OFFLINE is set" in offline
    assert "the hub cannot be reached (ConnectError" in refused
    assert "--revision main" in refused


def test_an_existing_directory_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    path = Path("Qwen/Qwen3-0.6B")
    assert find_model(path) == path
    with pytest.raises(ModelError, match=r"model\.revision is 'main', but Qwen/Qwen3-0\.6B is a directory here"):
        find_model(path, "main")
    for no_name in (Path("nowhere"), Path("/a/b"), Path("a/b/c")):
        assert find_model(no_name) == no_name
    with pytest.raises(ModelError, match=r"names the revision 'v1', and model\.revision is 'v2'"):
        find_model(Path("a/b@v1"), "v2")


def test_a_directory_of_the_cache_knows_its_name() -> None:
    path = Path(f"/home/u/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/{COMMIT}")
    assert origin_of(path) == ("Qwen/Qwen3-0.6B", COMMIT)
    assert named(path) == f"Qwen/Qwen3-0.6B@{COMMIT}"
    for other in (path / "more", path.parent, Path("models/tiny-qwen3")):
        assert origin_of(other) is None
        assert named(other) == str(other)


COMMAND = """
import sys
from driftproof.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_recipe_names_a_model_of_the_hub(published: Path, tmp_path: Path) -> None:
    """Resolved once, by the command; what runs afterwards, and a resume, has the directory."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[model]\npath = "{NAME}"\nreference = "{NAME}@v1"\n[objective]\nname = "grpo"\nkl = 0.1\n'
        "[tracking]\ntensorboard = false\n"
    )
    directory = tmp_path / "hub" / "models--me--tiny" / "snapshots" / COMMIT
    with serve(published) as hub:
        environment: dict[str, Any] = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        environment |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, "train", recipe, "--dry-run", "--model.revision", "v1"],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f'path = "{directory}"' in done.stdout
    assert f'reference = "{directory}"' in done.stdout
    assert done.stderr.count(f"me/tiny is commit {COMMIT} of the hub") == 1
