import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from driftproof.errors import ConfigError, TaskError
from driftproof.tasks import build
from driftproof.tiny import model as tiny_model
from driftproof.tiny import supervised
from driftproof.tiny.model import make_tiny_model
from driftproof.tiny.tokenizers import CONTEXT, character_tokenizer

CHARACTERS = character_tokenizer()


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
def test_a_plain_hugging_face_directory(architecture: Any, tokenizer: Any, tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "model"
    report = make_tiny_model(directory, architecture=architecture, tokenizer=tokenizer, train=False)
    model = AutoModelForCausalLM.from_pretrained(directory)
    opened = AutoTokenizer.from_pretrained(directory)
    assert model.config.model_type == architecture
    assert model.dtype == torch.float32
    assert report.parameters == sum(p.numel() for p in model.parameters())
    assert 0.55e6 < report.parameters < 0.65e6
    assert model.config.max_position_embeddings == opened.model_max_length == CONTEXT
    assert len(opened) == model.config.vocab_size == {"characters": 98, "bytes": 258}[tokenizer]
    for settings in (opened, model.config, model.generation_config):
        assert (settings.pad_token_id, settings.eos_token_id, settings.bos_token_id) == (0, 1, None)
    assert (report.steps, report.trained, report.path) == (0, False, directory)
    assert [entry.name for entry in directory.parent.iterdir()] == ["model"]


@pytest.mark.slow
def test_opens_in_a_new_process_without_a_warning(random_model: Path) -> None:
    script = (
        "import sys, transformers; transformers.utils.logging.disable_progress_bar();"
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        "t, m = T.from_pretrained(sys.argv[1]), M.from_pretrained(sys.argv[1]);"
        "b = t(['47+85=', '1+2='], return_tensors='pt', padding=True);"
        "print(t.encode('47+85='), m.generate(**b, max_new_tokens=2, do_sample=False).shape)"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", script, str(random_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == f"{CHARACTERS.encode('47+85=')} torch.Size([2, 8])\n"


def test_seed_decides_the_weights_and_leaves_the_callers_generator_alone(random_model: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    make_tiny_model(tmp_path / "again", train=False)
    make_tiny_model(tmp_path / "other", train=False, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    weights = (random_model / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != weights


def test_one_made_before_is_kept_when_asked(random_model: Path) -> None:
    written = (random_model / "model.safetensors").stat().st_mtime_ns
    report = make_tiny_model(random_model, train=False, exist_ok=True)
    assert report.path == random_model
    assert not report.trained
    assert (random_model / "model.safetensors").stat().st_mtime_ns == written


def test_an_occupied_directory_is_refused(random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a tiny model already; choose another directory or remove it"):
        make_tiny_model(random_model, train=False)
    with pytest.raises(ConfigError, match=r"holds another tiny model \(.* seed 0, .*\), not .* seed 5"):
        make_tiny_model(random_model, train=False, seed=5, exist_ok=True)
    with pytest.raises(ConfigError, match=r"\(.* task arithmetic, .*\), not .* task running_sums, "):
        make_tiny_model(random_model, task="running_sums", train=False, exist_ok=True)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"exists and is no tiny model; choose another directory or remove it"):
        make_tiny_model(tmp_path, train=False, exist_ok=True)
    with pytest.raises(ConfigError, match=r"exists and is no tiny model"):
        make_tiny_model(tmp_path / "thesis.txt", train=False)
    with pytest.raises(ConfigError, match=r"thesis.txt is no writable directory"):
        make_tiny_model(tmp_path / "thesis.txt" / "model", train=False)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_an_unwritable_place_is_refused_before_training(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="is no writable directory"):
        make_tiny_model(tmp_path / "model")


@pytest.mark.parametrize("setting", [{"architecture": "gpt2"}, {"tokenizer": "words"}])
def test_unknown_names_are_refused_with_the_valid_ones(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(qwen3, llama|characters, bytes)$"):
        make_tiny_model(tmp_path / "model", **setting)


@pytest.mark.parametrize("accuracy", [0, -0.1, 0.7, 33, math.nan])
def test_an_accuracy_beyond_the_demonstrations_is_refused(accuracy: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"accuracy is {accuracy}; it must be above 0 and below 0\.7, the share"):
        make_tiny_model(tmp_path / "model", accuracy=accuracy)


def test_a_task_that_cannot_be_learned_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "größer: 9 oder 10?", "answer": "10"}\n' * 3)
    for task, fields, message in (
        ("running_sum", {}, r"unknown task 'running_sum'; did you mean 'running_sums'\?"),
        ("running_sums", {"terms": 3}, r"task 'running_sums': unknown field 'terms'"),
        ("arithmetic", {"heldout": 0}, r"task 'arithmetic' has no held-out prompts to measure accuracy on"),
        ("jsonl", {"path": data, "heldout": 1}, r"'characters' cannot write 'ß'; use the tokenizer 'bytes'"),
    ):
        with pytest.raises((TaskError, ConfigError), match=message):
            make_tiny_model(tmp_path / "model", task=task, task_fields=fields)
    assert not (tmp_path / "model").exists()


def test_any_task_and_its_fields_are_recorded(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "größer: 9 oder 10?", "answer": "10"}\n' * 3)
    settings: dict[str, Any] = {
        "tokenizer": "bytes",
        "task": "jsonl",
        "task_fields": {"path": data, "heldout": 1},
        "train": False,
    }
    made = make_tiny_model(tmp_path / "model", **settings)
    record = json.loads((tmp_path / "model" / "tiny_model.json").read_text())
    assert (record["task"], record["task_fields"]) == ("jsonl", {"path": str(data), "heldout": 1})
    assert record["accuracy"] == 0.33
    assert make_tiny_model(tmp_path / "model", **settings, exist_ok=True) == made


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(step: int, accuracy: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_tiny_model(tmp_path / "training", progress=interrupt)
    # The report is written last: a full disk there comes after the weights.
    monkeypatch.setattr(tiny_model, "REPORT_FILE", "no/such/place.json")
    with pytest.raises(OSError, match="place"):
        make_tiny_model(tmp_path / "saving", train=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "task_fields", "accuracy"),
    [
        ("arithmetic", {"heldout": 32}, 1e-3),
        pytest.param("running_sums", {"most_terms": 3}, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_a_few_steps_learn_and_depend_on_the_seed_alone(
    task: str, task_fields: dict[str, int], accuracy: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "BATCH", 32)
    curves: list[list[tuple[int, float]]] = [[], []]
    reports = [
        make_tiny_model(
            tmp_path / str(i),
            task=task,
            task_fields=task_fields,
            accuracy=accuracy,
            progress=lambda *point, curve=curve: curve.append(point),
        )
        for i, curve in enumerate(curves)
    ]
    assert curves[0] == curves[1]
    assert curves[0][-1][1] == pytest.approx(reports[0].sampled_accuracy, rel=1e-5)
    assert reports[0].steps == curves[0][-1][0] == 5 * len(curves[0])
    assert curves[0][-2][1] < accuracy <= reports[0].sampled_accuracy
    assert json.loads((tmp_path / "0" / "tiny_model.json").read_text())["steps"] == reports[0].steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "tokenizer", "task", "seed"),
    [
        ("qwen3", "characters", "arithmetic", 0),
        ("qwen3", "characters", "arithmetic", 1),
        ("llama", "characters", "arithmetic", 0),
        ("qwen3", "bytes", "arithmetic", 0),
        ("qwen3", "characters", "running_sums", 0),
        ("qwen3", "characters", "running_sums", 1),
    ],
)
def test_a_third_of_the_sampled_answers_is_right(
    architecture: Any, tokenizer: Any, task: str, seed: int, tmp_path: Path
) -> None:
    report = make_tiny_model(tmp_path / "model", architecture=architecture, tokenizer=tokenizer, task=task, seed=seed)
    # It is measured every so many steps, and may have risen past its mark by then.
    assert 0.30 <= report.sampled_accuracy <= 0.42
    opened = AutoTokenizer.from_pretrained(report.path)
    model = AutoModelForCausalLM.from_pretrained(report.path)
    prompts = build(task).heldout
    batch = opened([prompt.text for prompt in prompts], return_tensors="pt", padding=True)
    written = model.generate(**batch, max_new_tokens=20, do_sample=False)[:, batch["input_ids"].shape[1] :]
    answers = opened.batch_decode(written, skip_special_tokens=True)
    greedy = sum(a == p.answer for a, p in zip(answers, prompts, strict=True)) / len(prompts)
    # A batch padded on the left rounds differently from one padded on the right: a near tie may fall either way.
    assert greedy == pytest.approx(report.greedy_accuracy, abs=2 / len(prompts))
