import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.config import Config, load_config
from driftproof.errors import ConfigError
from driftproof.lab.settings import LabConfig
from driftproof.objectives import build
from driftproof.values import parse_overrides

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
ALL_RECIPES = sorted(path for folder in ("recipes", "studies") for path in (ROOT / folder).rglob("*.toml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('[model]\npath = "models/m"\n[learner]\nlr = 0.5\n[objective]\nname = "spo"\nalpha = 0.1\n')
    return path


def test_a_recipe_is_laid_over_the_defaults_and_overrides_over_both(recipe: Path):
    overrides = [
        "--learner.lr",
        "2e-3",
        "--run.steps=7",
        "--objective.alpha",
        "0.5",
        "--run.name=a=b",
        "--task.digits",
        "3",
    ]
    config = load_config(recipe, overrides)
    assert (config.learner.lr, config.run.steps, config.run.name) == (2e-3, 7, "a=b")
    assert (config.objective.name, config.objective.fields) == ("spo", {"alpha": 0.5})
    assert (config.task.name, config.task.fields) == ("arithmetic", {"digits": 3})
    assert config.model.path == Path("models/m")
    assert config.rollouts.group_size == Config(model=config.model).rollouts.group_size
    assert load_config(recipe).learner.lr == 0.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--a.b", "1"], 1),
        (["--a.b", "-1"], -1),
        (["--a.b=1e-6"], 1e-6),
        (["--a.b", "true"], True),
        (["--a.b", "[1, 2]"], [1, 2]),
        (["--a.b", '"12"'], "12"),
        (["--a.b", "some words, ['not TOML"], "some words, ['not TOML"),
        (["--a.b", "models/tiny"], "models/tiny"),
        (["--a.b="], ""),
        (["--a.b", ""], ""),
    ],
)
def test_values_of_overrides_are_toml_where_they_can_be(arguments: list[str], expected: Any):
    assert parse_overrides(arguments) == [("a", "b", expected)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["learner.lr", "1"], "unexpected argument 'learner.lr'; settings are given as --section.key value"),
        (["--lr", "1"], "unexpected argument '--lr'"),
        (["--learner.", "1"], "unexpected argument '--learner.'"),
        (["--.lr", "1"], "unexpected argument '--.lr'"),
        (["--learner.lr"], "--learner.lr needs a value: --learner.lr VALUE"),
        (["--engine.launch", "--run.steps", "3"], "--engine.launch needs a value: --engine.launch VALUE"),
        (["--run.steps", "3", "4"], "unexpected argument '4'"),
    ],
)
def test_arguments_of_another_form_are_refused(recipe: Path, arguments: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--learner.lrr", "1"], "unknown setting 'learner.lrr'; did you mean 'learner.lr'? valid: "),
        (["--lerner.lr", "1"], "unknown setting 'lerner'; did you mean 'learner'? valid: advantages, "),
        (["--zzz.lr", "1"], "unknown setting 'zzz'; did you mean 'learner.lr'? valid: advantages, engine, "),
        (["--run.steps", "many"], "run.steps = 'many': input should be a valid integer"),
        (["--run.steps", "2.5"], "run.steps = 2.5: input should be a valid integer"),
        (["--run.steps", "0"], "run.steps = 0: input should be greater than or equal to 1"),
        (["--learner.lr", "nan"], "learner.lr = nan: input should be"),
        (
            ["--learner.schedule", "cosin"],
            "learner.schedule = 'cosin': input should be 'constant', 'cosine' or 'linear'",
        ),
        (["--engine.launch", "maybe"], "engine.launch = 'maybe': input should be a valid boolean"),
        (
            ["--engine.name", "recorded", "--rollouts.path", "t.jsonl"],
            "engine.name = 'recorded': a recorded trace is no engine any more; leave engine.name out and set "
            "rollouts.recorded_share = 1 beside rollouts.path, to train on the trace alone",
        ),
        (["--rollouts.path", "t.jsonl"], "rollouts.path and rollouts.recorded_share belong together"),
        (["--rollouts.recorded_share", "0.5"], "rollouts.path and rollouts.recorded_share belong together"),
        (["--rollouts.recorded_share", "1"], "rollouts.path and rollouts.recorded_share belong together"),
        (
            ["--task.name", "recorded", "--rollouts.path", "t.jsonl", "--rollouts.recorded_share", "0.5"],
            "rollouts.recorded_share 1; got rollouts.path t.jsonl and rollouts.recorded_share 0.5",
        ),
        (["--task.name", "recorded"], "rollouts.recorded_share 1; got rollouts.path None"),
        (
            ["--rollouts.path", "t.jsonl", "--rollouts.recorded_share", "1", "--engine.name", "vllm"],
            "rollouts.recorded_share 1 leaves nothing to write for the servers of engine.name 'vllm'",
        ),
        (["--rollouts.recorded_share", "0"], "rollouts.recorded_share = 0: input should be greater than 0"),
        (
            ["--rollouts.recorded_share", "1.1"],
            "rollouts.recorded_share = 1.1: input should be less than or equal to 1",
        ),
        (["--rollouts.recorded_share", "nan"], "rollouts.recorded_share = nan: input should be"),
        (
            ["--rollouts.path", "t.jsonl", "--rollouts.recorded_share", "0.5", "--rollouts.workers", "0"],
            "with rollouts.workers 0 nobody would write them",
        ),
        (["--runtime.mode", "sync", "--rollouts.workers", "2"], "runtime.mode 'sync' has one rollout worker"),
        (["--run.steps", "0", "--learner.lr", "-1"], "learner.lr = -1: input should be greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(recipe: Path, overrides: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    assert message in str(caught.value)


def test_all_mistakes_are_named_at_once(recipe: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, ["--run.steps", "0", "--learner.lrr", "1", "--sampling.top_p", "2"])
    assert [line.split(";")[0].split(" = ")[0] for line in str(caught.value).splitlines()] == [
        "run.steps",
        "sampling.top_p",
        "unknown setting 'learner.lrr'",
    ]


def test_a_missing_model_is_named_as_it_must_be_given(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text("")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "setting 'model.path' is missing" in str(caught.value)
    assert "--model.path VALUE" in str(caught.value)
    assert load_config(path, ["--model.path", "m"]).model.path == Path("m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[run\n", "is not valid TOML: "),
        (b"[run]\nsteps = 1\nsteps = 2\n", "is not valid TOML: "),
        (b"\xff\xfe", "is not UTF-8 (its byte 0); save it as UTF-8"),
        (b"run = 3\n", "run = 3: input should be"),
    ],
)
def test_a_recipe_that_cannot_be_parsed_is_refused(tmp_path: Path, text: bytes, message: str):
    path = tmp_path / "recipe.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["--model.path", "m"])
    assert message in str(caught.value)


def test_a_section_that_is_no_table_cannot_be_overridden(tmp_path: Path):
    (tmp_path / "recipe.toml").write_text("run = 3\n")
    with pytest.raises(ConfigError, match=r"run must be a table, like \[run\]"):
        load_config(tmp_path / "recipe.toml", ["--run.steps", "3"])


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path: Path):
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read: "):
            load_config(path)


def test_without_overlap_there_is_no_staleness(recipe: Path):
    assert load_config(recipe, ["--rollouts.max_staleness", "7"]).rollouts.max_staleness == 7
    settings = ["--rollouts.max_staleness", "7", "--learner.publish_every", "3"]
    config = load_config(recipe, [*settings, "--runtime.mode", "sync"])
    assert (config.rollouts.max_staleness, config.learner.publish_every) == (0, 1)
    assert load_config(recipe, settings).learner.publish_every == 3
    assert load_config(recipe, [*settings, "--rollouts.max_staleness", "0"]).learner.publish_every == 1


def test_a_setting_that_is_no_more_says_what_serves_instead(recipe: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, ["--engine.start_seconds", "60", "--learner.entropy", "true"])
    assert str(caught.value).splitlines() == [
        "setting 'engine.start_seconds' is no more: a launched server has runtime.start_seconds to answer; "
        "leave it out",
        "setting 'learner.entropy' is no more: the entropy is always measured; leave it out",
    ]


def test_a_run_of_an_earlier_version_goes_on_without_settings_that_are_no_more(recipe: Path, tmp_path: Path):
    config = load_config(recipe)
    old = config.to_toml().replace("[learner]\n", "[learner]\nrow_tokens = 512\nentropy = true\n")
    (tmp_path / "config.toml").write_text(old)
    assert Config.from_toml(old) == Config.written_in(tmp_path) == config
    with pytest.raises(ConfigError, match=r"setting 'learner\.row_tokens' is no more"):
        load_config(tmp_path / "config.toml")


def test_settings_are_checked_without_torch():
    done = "import sys, driftproof.config, driftproof.lab.settings; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", done], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "learner.threads = 0: input should be greater than or equal to 1 or 'auto'"),
        ("many", "learner.threads = 'many': input should be a valid integer, unable to parse string as an integer or"),
    ],
)
def test_a_number_that_may_be_auto_is_explained_once(recipe: Path, value: str, message: str):
    assert load_config(recipe, ["--learner.threads", "auto"]).learner.threads == "auto"
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, ["--learner.threads", value])
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


toml_scalars = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(), st.lists(st.integers(0, 9))
)


@given(
    lr=st.floats(1e-300, 1e300),
    max_grad_norm=st.one_of(st.floats(1e-3, 1e3), st.just(math.inf)),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    name=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs"], exclude_characters="./~"), min_size=1),
    directory=st.one_of(st.none(), st.just(Path("/a b/ü"))),
    fields=st.dictionaries(st.text(min_size=1).filter(lambda key: key != "name"), toml_scalars, max_size=3),
)
def test_what_is_written_to_toml_is_read_as_the_same(lr, max_grad_norm, betas, name, directory, fields):
    config = Config.model_validate(
        {
            "run": {"name": name, "directory": directory},
            "model": {"path": "m"},
            "learner": {"lr": lr, "max_grad_norm": max_grad_norm, "betas": betas},
            "objective": {"name": "asympo", **fields},
        }
    )
    assert Config.model_validate(tomllib.loads(config.to_toml())) == config


def test_a_share_survives_toml_and_is_not_written_where_it_is_not_given(recipe: Path):
    mixed = load_config(recipe, ["--rollouts.path", "t.jsonl", "--rollouts.recorded_share", "0.25"])
    assert Config.from_toml(mixed.to_toml()) == mixed
    assert "recorded_share" not in load_config(recipe).to_toml()


def test_the_lab_has_no_recorded_share(recipe: Path):
    share = ["--rollouts.path", "t.jsonl", "--rollouts.recorded_share", "0.25", "--lab.objectives", '[{name = "spo"}]']
    assert LabConfig.load(recipe, share[4:]).rollouts.recorded_share is None
    with pytest.raises(ConfigError, match="the lab writes its own responses, all of them live"):
        LabConfig.load(recipe, share)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_are_valid_as_their_comments_call_them(path: Path):
    (command,) = [line for line in path.read_text().splitlines() if line.startswith("# driftproof train")]
    _, _, program, recipe, *overrides = command.split()
    assert (program, recipe) == ("train", f"recipes/{path.name}")
    config = load_config(path, overrides)
    build(config.objective.name, **config.objective.fields)


@pytest.mark.parametrize("path", ALL_RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_valid(path: Path):
    kind = LabConfig if "lab" in tomllib.loads(path.read_text()) else Config
    trace = ["--rollouts.path", "trace.jsonl"] if path.stem == "recorded" else []
    config = kind.load(path, trace)
    assert kind.from_toml(config.to_toml()) == config


def test_there_are_recipes():
    assert RECIPES
