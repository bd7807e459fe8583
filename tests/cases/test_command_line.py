"""The command line as people use it: what is near is named, what is wrong is said at once, and nothing is guessed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from multiprocessing import process, util
from pathlib import Path

import pytest

from driftproof import __version__
from driftproof.cli.main import main
from driftproof.config import load_config
from driftproof.errors import ConfigError
from driftproof.lab.settings import LabConfig
from driftproof.run import RunDirectory
from driftproof.runtime.placement.local import LONGEST_DIRECTORY, _choose_directory_of_sockets
from driftproof.runtime.resources import largest_micro_batch
from driftproof.runtime.supervisor import resume_hint
from tests.runtime.runs import LIMIT, end, launch

RECIPE = """
[run]
name = "hunt"
steps = 2
[task]
name = "arithmetic"
digits = 2
[objective]
name = "asympo"
[sampling]
max_tokens = 6
[rollouts]
group_size = 4
[learner]
groups_per_step = 2
lr = 1e-3
[evaluation]
prompts = 0
[tracking]
tensorboard = false
"""

Said = Callable[..., str]


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.toml"
    path.write_text(f'{RECIPE}[model]\npath = "{tiny_model_dir}"\n')
    return path


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Said:
    """The sentence with which a command is refused."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("driftproof: ")
        assert "Traceback" not in said
        return said

    return run


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"driftproof {__version__}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trian", "recipe.toml"], "unknown command 'trian'; did you mean 'train'? valid: check, eval, "),
        (["gruops"], "did you mean 'groups'?"),
        (["show", "runs/a"], "did you mean 'driftproof report'?"),
        (["resume", "runs/a"], "did you mean 'driftproof train --resume'?"),
        (["recipes/quickstart.toml"], "did you mean 'driftproof train recipes/quickstart.toml'?"),
        (["ledger", "repiar", "runs/a"], "unknown action of ledger 'repiar'; did you mean 'repair'?"),
        (["zzz"], "unknown command 'zzz'; valid: check, "),
    ],
)
def test_a_command_that_is_nearly_one(words: list[str], meant: str, refusal: Said) -> None:
    assert meant in refusal(*words)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--steps", "3"], "unknown option '--steps'; did you mean --run.steps?"),
        (["--objective", "grpo"], "did you mean --objective.name?"),
        (["--lr", "1"], "did you mean --learner.lr?"),
        (["--lr=1"], "unknown option '--lr'; did you mean --learner.lr?"),
        (["-lr", "1"], "did you mean --learner.lr?"),
        (["--learning-rate", "1"], "did you mean --learner.lr?"),
        (["--group-size", "8"], "did you mean --rollouts.group_size?"),
        (["--grup_size", "8"], "did you mean --rollouts.group_size?"),
        (["--model", "m"], "did you mean --model.path or --engine.model?"),
        (["--task", "gsm8k"], "did you mean --task.name?"),
        (["--seed", "3"], "did you mean --run.seed?"),
        (["--temperature", "1"], "did you mean --sampling.temperature?"),
        (["--max-new-tokens", "9"], "did you mean --sampling.max_tokens?"),
        (["--output-dir", "x"], "did you mean --run.directory?"),
        (["--threads", "2"], "did you mean --engine.threads or --learner.threads?"),
        (["--dryrun"], "did you mean --dry-run?"),
        (["--dry_run"], "did you mean --dry-run?"),
        (["--zzz", "2"], "unknown option '--zzz'; valid: -h, --help, --resume, --dry-run and settings, --section.key"),
    ],
)
def test_an_option_that_is_nearly_a_setting(words: list[str], meant: str, recipe: Path, refusal: Said) -> None:
    assert meant in refusal("train", recipe, *words)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["–run.steps", "3"], "did you mean --run.steps? Settings are typed with two hyphens"),
        (["—lr", "3"], "did you mean --lr? Settings are typed with two hyphens"),
        (["run.steps=3"], "did you mean --run.steps? Settings are typed with two hyphens"),
        (["run.steps", "3"], "did you mean --run.steps?"),
        (["--run", "3"], "--run is a section; its settings are --run.name, --run.directory"),
    ],
)
def test_hyphens_that_are_dashes_and_sections_alone(words: list[str], meant: str, recipe: Path, refusal: Said) -> None:
    assert meant in refusal("train", recipe, *words)


def test_paths_begin_at_home_in_recipes_too(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    settings = ["--model.path=~/m", "--task.name=jsonl", "--task.path=~/d.jsonl", "--run.directory", "~/run"]
    config = load_config(recipe, settings)
    assert (config.model.path, config.run.directory) == (Path("/home/me/m"), Path("/home/me/run"))
    assert config.task.fields["path"] == "/home/me/d.jsonl"
    recipe.write_text('[model]\npath = "~/m"\n')
    assert load_config(recipe).model.path == Path("/home/me/m")


def test_what_is_no_recipe(recipe: Path, refusal: Said) -> None:
    assert "is not valid TOML: it is larger than 1,048,576 bytes" in refusal("train", "/dev/zero")
    recipe.write_bytes('name = "größe"'.encode("latin-1"))
    assert "is not UTF-8 (its byte 10); save it as UTF-8" in refusal("train", recipe)
    recipe.write_text('run = [1]\n[model]\npath = "m"\n')
    assert "run = [1]: input should be a section, [run], with the keys name, directory" in refusal("train", recipe)


def test_every_key_alone_is_led_to_its_section(recipe: Path, refusal: Said) -> None:
    for section, table in load_config(recipe).model_dump().items():
        for key in table:
            if section not in ("task", "objective") or key == "name":
                assert f"--{section}.{key}" in refusal("train", recipe, f"--{key}", "1").partition("valid")[0]


def test_options_of_other_commands(recipe: Path, refusal: Said) -> None:
    assert "--dry-run stands behind its command: driftproof train --dry-run" in refusal("--dry-run", "train", recipe)
    assert "did you mean --limit?" in refusal("groups", "runs/a", "--limt", "3")
    assert "did you mean --lab.staleness?" in refusal("lab", recipe, "--staleness", "[0]")
    assert "unrecognized arguments: 3" in refusal("train", recipe, "3")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("run.lr", "did you mean 'learner.lr'?"),
        ("learner.learning_rate", "did you mean 'learner.lr'?"),
        ("learner.group_size", "did you mean 'rollouts.group_size'?"),
        ("train.max_steps", "did you mean 'run.steps'?"),
        ("sampling.max_new_tokens", "did you mean 'sampling.max_tokens'?"),
        ("lerner.lr", "did you mean 'learner'?"),
    ],
)
def test_a_setting_in_the_wrong_section(name: str, meant: str, recipe: Path, refusal: Said) -> None:
    assert meant in refusal("train", recipe, "--dry-run", f"--{name}", "1")
    section, _, key = name.partition(".")
    broken = recipe.with_name("broken.toml")
    broken.write_text(f'[model]\npath = "m"\n[{section}]\n{key} = 1\n')
    assert meant in refusal("train", broken)


@pytest.mark.parametrize(
    "name", ["2026", "1e5", "true", "1979-05-27", "nan", "0x1F", "[a]", "größe-日本", "co py", "it's"]
)
def test_S1_a_text_is_what_was_typed(name: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--dry-run", "--run.name", name, "--engine.model", name]) == 0
    settings = tomllib.loads(capsys.readouterr().out)
    assert settings["run"]["name"] == settings["engine"]["model"] == name
    assert load_config(recipe, ["--model.path", name]).model.path == Path(name)
    assert load_config(recipe, ["--engine.name", "openai", "--engine.url", name]).engine.url[:1] != ()
    assert load_config(recipe, ["--task.path", name, "--task.name", "jsonl"]).task.fields["path"] == name


def test_S1_a_text_of_a_recipe_stands_in_quotes(recipe: Path, refusal: Said) -> None:
    recipe.write_text(recipe.read_text().replace('"hunt"', "2026"))
    assert "run.name = 2026: input should be a valid string; in a recipe, write it in quotes" in refusal(
        "train", recipe
    )


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("learner.betas", "[0.9,1.5]", "learner.betas.1 = 1.5: input should be less than 1"),
        ("learner.betas", "[0.9]", "learner.betas = [0.9]: too few values"),
        ("task.heldout", "true", "task.heldout = true: input should be a number"),
        ("learner.betas", "[true,0.5]", "learner.betas = [True, 0.5]: input should be a number"),
        ("learner.lr", "inf", "learner.lr = inf: input should be a finite number"),
        ("learner.lr", "true", "learner.lr = true: input should be a number"),
        ("run.steps", "true", "run.steps = true: input should be a number"),
        ("run.steps", "1000000000", "run.steps = 1000000000: input should be below 100,000,000"),
        ("run.steps", "2026-11-28", "run.steps = 2026-11-28: input should be a valid integer"),
        ("run.seed", "-1", "run.seed = -1: input should be greater than or equal to 0"),
        ("run.seed", "1" + "0" * 30, "input should be less than 9223372036854775808"),
        ("sampling.temperature", "inf", "sampling.temperature = inf: input should be a finite number"),
        ("rollouts.workers", "1000000", "rollouts.workers = 1000000: input should be less than or equal to 1024"),
        ("run.name", "", "run.name = '': it names the directory runs/NAME"),
        ("run.name", "../up", "give run.directory for a run elsewhere"),
        ("run.name", "n" * 300, "it is longer than the 200 bytes"),
        ("run.name", "a\nb", "it has a control character"),
        ("run.directory", " ", "run.directory = ' ': it is empty; give a path, or leave the setting out"),
        ("model.path", "", "model.path = '': it is empty"),
        ("model.path", "a\ud800b", "it is not valid UTF-8"),
        ("learner.token_budget", "many", "unable to parse string as an integer or 'auto'"),
    ],
)  # fmt: skip
def test_S6_values_that_no_run_could_take(setting: str, value: str, words: str, recipe: Path, refusal: Said) -> None:
    for dry in ([], ["--dry-run"]):
        assert words in refusal("train", recipe, *dry, f"--{setting}", value)
    assert not Path("runs").exists()


def test_S6_a_limit_may_be_infinite(recipe: Path) -> None:
    settings = ["--learner.max_grad_norm", "inf", "--runtime.stall_seconds", "inf", "--run.seed", str(2**40)]
    config = load_config(recipe, settings)
    assert (config.learner.max_grad_norm, config.run.seed) == (float("inf"), 2**40)


def test_S9_a_setting_without_its_value(recipe: Path, refusal: Said) -> None:
    needs = "--learner.gradient_checkpointing needs a value: --learner.gradient_checkpointing VALUE"
    assert needs in refusal("train", recipe, "--dry-run", "--learner.gradient_checkpointing", "--run.steps", "3")
    assert needs in refusal("train", recipe, "--learner.gradient_checkpointing", "--dry-run")
    assert "--run.steps needs a value: --run.steps VALUE" in refusal("train", recipe, "--run.steps")


def test_F16_a_path_with_a_NUL(recipe: Path, refusal: Said) -> None:
    for words in (["train", "a\0b.toml"], ["train", "--resume", "a\0b"], ["groups", "a\0b"], ["eval", "a\0b"]):
        assert "has a NUL character" in refusal(*words)
    recipe.write_text(recipe.read_text().replace('"hunt"', '"a\\u0000b"'))
    assert r"run.name = 'a\x00b': it has a NUL character" in refusal("train", recipe)
    recipe.write_text('[task]\nname = "jsonl"\npath = "a\\u0000b"\n[model]\npath = "m"\n')
    assert r"task.path = 'a\x00b': it has a NUL character" in refusal("train", recipe)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "{dir}"], "is a directory"),
        (["train", "{run}"], "it is a run, go on with it: driftproof train --resume '{run}'"),
        (["train", "{dir}/{long}"], "cannot be read: File name too long"),
        (["train", "{recipe}", "--model.path", "{recipe}"], "{recipe}"),
        (["train", "{recipe}", "--model.path", "{long}"], "File name too long"),
        (["train", "{recipe}", "--run.directory", "{recipe}"], "run directory {recipe} is a file; choose another"),
        (["train", "{recipe}", "--run.directory", "{recipe}/run"], "cannot be written: Not a directory"),
        (["train", "{recipe}", "--run.directory", "{dir}/{long}"], "cannot be written: File name too long"),
        (["train", "--resume", "{recipe}"], "is not a run: it has no config.toml"),
        (["train", "--resume", "{long}"], "File name too long"),
        (["groups", "{recipe}"], "is not a run"),
        (["groups", "{run}", "--limit", "0"], "argument --limit: '0' is no whole number from 1 to 100000000"),
        (["groups", "{run}", "--limit", "1e3"], "argument --limit: '1e3' is no whole number"),
        (["ledger", "prune", "{run}", "--keep-steps", "-1"], "'-1' is no whole number from 0"),
        (["inbox", "{run}", "--port", "70000"], "'70000' is no whole number from 0 to 65535"),
        (["eval", "{dir}"], "eval needs a task"),
        (["eval", "{run}"], "is a run; evaluate its model: driftproof eval '{run}/snapshots/latest'"),
    ],
)  # fmt: skip
def test_files_directories_and_numbers_of_the_wrong_kind(
    words: list[str], sentence: str, recipe: Path, tmp_path: Path, refusal: Said
) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    (run / "config.toml").write_text(recipe.read_text())
    (tmp_path / "directory").mkdir()
    names = {"dir": tmp_path / "directory", "run": run, "recipe": recipe, "long": "x" * 300}
    said = refusal(*(word.format(**names) for word in words))
    assert sentence.format(**names) in said


def test_eval_guesses_no_task(recipe: Path, tiny_model_dir: Path, refusal: Said) -> None:
    assert "eval needs a task: give a recipe that names one" in refusal("eval", tiny_model_dir)
    Path("taskless.toml").write_text("[sampling]\nmax_tokens = 3\n")
    assert "eval needs a task" in refusal("eval", tiny_model_dir, "taskless.toml")
    assert "eval needs a task" in refusal("eval", tiny_model_dir, "--task.digits", "2")


def test_R1_a_path_with_a_blank_can_be_pasted() -> None:
    assert resume_hint(RunDirectory(path=Path("runs/co py"))) == "go on with: driftproof train --resume 'runs/co py'"
    assert resume_hint(RunDirectory(path=Path("runs/a$b"))).endswith("'runs/a$b'")


def test_groups_of_one_are_warned_of(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lone = ["train", str(recipe), "--dry-run", "--rollouts.group_size", "1"]
    assert main(lone) == 0
    said = capsys.readouterr().err
    assert "warning: rollouts.group_size is 1: a lone response is compared with itself" in said
    assert "no reward teaches anything; set it to 4 or more" in said
    assert main([*lone, "--advantages.baseline", "leave-one-out"]) == 0
    assert "'leave-one-out'" in capsys.readouterr().err
    assert main([*lone, "--objective.name", "ppo"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main(["check", *lone[1:2], *lone[3:]]) == 0
    assert "warning: rollouts.group_size is 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gibibytes", "settings", "words"),
    [
        (1e-3, [], "learner needs more memory than cpu has; use a smaller model"),
        (1.03, ["--learner.groups_per_step", "4096", "--learner.token_budget", "16384"],
         "lower learner.token_budget, which is 16,384"),
        (1.05, ["--sampling.max_tokens", "8000", "--engine.slots", "1", "--learner.token_budget", "1000"],
         "set learner.gradient_checkpointing to true, or lower sampling.max_tokens, which is 8,000"),
        (1.2, ["--engine.slots", "100000", "--learner.groups_per_step", "9999", "--learner.token_budget", "999"],
         "each worker needs more memory than cpu has; lower engine.slots, which is 100,000, or sampling.max_tokens"),
        (1.05, ["--rollouts.workers", "20"], "all processes on cpu together need"),
    ],
    ids=["model", "budget", "one long row", "slots", "together"],
)  # fmt: skip
def test_check_names_what_to_lower(
    gibibytes: float,
    settings: list[str],
    words: str,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("driftproof.runtime.resources.memory_of", lambda _: int(gibibytes * 2**30))
    assert main(["check", str(recipe), *settings]) == 1
    said = capsys.readouterr().out
    assert words in said
    assert "prompts of up to 6 tokens and responses of" in said


@pytest.mark.parametrize(
    ("settings", "prompt", "rows"),
    [
        # Groups of 4 with responses of 6 tokens, the last of which is not read; 2 groups of them.
        ([], 6, (2, 6 + 4 * 5)),
        (["--learner.token_budget", "30"], 6, (2, 6 + 5)),
        (["--learner.groups_per_step", "4000"], 6, (16384 // 26, 26)),
        (["--learner.groups_per_step", "4", "--learner.updates_per_step", "2"], 6, (2, 26)),
        (["--sampling.max_tokens", "1000"], 500, (8, 500 + 999)),
    ],
)
def test_check_counts_real_positions(settings: list[str], prompt: int, rows: tuple[int, int], recipe: Path) -> None:
    config = load_config(recipe, settings)
    assert largest_micro_batch(config, prompt, config.sampling.max_tokens) == rows


def test_U1_a_long_TMPDIR(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("t" * LONGEST_DIRECTORY)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setitem(process.current_process()._config, "tempdir", None)  # type: ignore[attr-defined]
    _choose_directory_of_sockets()
    assert len(util.get_temp_dir()) < LONGEST_DIRECTORY
    assert tempfile.gettempdir() == str(long)
    monkeypatch.setitem(process.current_process()._config, "tempdir", None)  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="set TMPDIR to a shorter one"):
        _choose_directory_of_sockets()


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def command(*words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, "-m", "driftproof.cli", *map(str, words)]
    return subprocess.run(program, capture_output=True, env=os.environ | environment, timeout=LIMIT)


def test_U3_a_recipe_is_UTF8_whatever_the_locale(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace('"hunt"', '"größe-日本"'), encoding="utf-8")
    named = recipe.rename(recipe.with_name("größe.toml"))
    done = command("train", named, "--dry-run", "--learner.lrr", "1", **ASCII)
    assert done.returncode == 2
    assert done.stderr.startswith(b"driftproof: unknown setting 'learner.lrr'")


@pytest.mark.slow
def test_U1_U3_a_whole_run_in_a_strange_place(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace('"hunt"', '"größe-日本"'), encoding="utf-8")
    long = tmp_path / ("t" * LONGEST_DIRECTORY)
    long.mkdir()
    done = command("train", recipe, TMPDIR=str(long), **ASCII)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "größe-日本" / "summary.json").is_file()


@pytest.mark.parametrize("seconds", [0.3, 2.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 3, 4.5, 6, 8))])
def test_C2_an_interrupt_while_everything_is_imported(seconds: float, recipe: Path) -> None:
    """The time until the signal, of a start that takes some ten seconds, is no wait for anything."""
    started = launch(recipe, "--run.steps", "400")
    time.sleep(seconds)
    os.killpg(started.pid, signal.SIGINT)
    _, stderr = end(started)
    assert "Traceback" not in stderr
    assert "KeyboardInterrupt" not in stderr
    if Path("runs").exists() and "stopped at step" in stderr:
        assert started.returncode == 1
    else:
        assert started.returncode == 130
        assert stderr == ""


def test_what_is_printed_goes_nowhere(recipe: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "driftproof.cli", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert started.stdout is not None
    started.stdout.close()
    _, stderr = started.communicate(timeout=LIMIT)
    assert b"Traceback" not in stderr


def test_the_labs_settings_are_near_too(recipe: Path, refusal: Said) -> None:
    text = recipe.read_text() + '[lab]\nobjectives = [{name = "spo"}]\n'
    recipe.write_text(text)
    assert LabConfig.load(recipe).lab.labels == ["spo"]
    assert "did you mean 'lab.seeds'?" in refusal("lab", recipe, "--lab.seed", "[1]")
