"""Model directories as people bring them: each test is a kind that a public report tells of, by its id."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, processors
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import generate
from driftproof.errors import CodecError, ModelError
from driftproof.learner.policy import Policy
from driftproof.ledger.ledger import Ledger
from driftproof.tasks.codec import Codec
from driftproof.tiny.tokenizers import byte_tokenizer
from driftproof.types import Prompt, Request, Sampling
from driftproof.weights.files import WEIGHTS, read_header
from driftproof.weights.models import ids_without_text, inspect_model, stop_ids
from driftproof.weights.snapshots import Publisher
from tests.runtime.runs import train

SHAPE: dict[str, Any] = {
    "vocab_size": 264, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
TEXTS = 258
"""Ids of the byte tokenizer; those of the models above it only pad their vocabulary."""
ZEROS = r"(0+)+(0+)+\1\2x"
"""An expression that looks for ever through zeros."""
SUM = Prompt(index=0, text="1+1=", answer="2")


def make(path: Path, config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> Path:
    """A random model, peaked enough that differences show, with a tokenizer of bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4)
    model.to(dtype).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "llama", LlamaConfig(**SHAPE, tie_word_embeddings=False))


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(llama, tmp_path / "model")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit_tokenizer(path: Path, edit: Callable[[Tokenizer], None]) -> None:
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    edit(tokenizer)
    tokenizer.save(str(path / "tokenizer.json"))


# Tokens


@pytest.mark.parametrize("kind", ["ends", "begins and ends", "another token behind"])
def test_k1_a_prompt_does_not_end_in_a_token_that_the_tokenizer_appends(model: Path, kind: str) -> None:
    before, behind = ("<pad> ", "<eos>") if kind == "begins and ends" else ("", "<eos>")
    single = f"{before}$A {behind}" + (" <pad>" if kind == "another token behind" else "")
    special = [("<eos>", 1), ("<pad>", 0)]

    def append(tokenizer: Tokenizer) -> None:
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)

    plain = Codec(model).encode(SUM).tolist()
    edit_tokenizer(model, append)
    codec = Codec(model)
    assert codec.encode(SUM).tolist() == [0] * bool(before) + plain
    assert codec.encode_response("2") == [ord("2") + 2, 1]


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_k6_responses_end_where_generate_of_transformers_ends_them(model: Path, file: str) -> None:
    ids = [1, *range(50, 150)]
    change(model / "config.json", eos_token_id=ids if file == "config.json" else 1)
    if file == "config.json":
        (model / "generation_config.json").unlink()
    else:
        change(model / file, eos_token_id=ids)
    codec = Codec(model)
    assert codec.stop_ids == tuple(ids)
    prompt = codec.encode(SUM)
    own = AutoModelForCausalLM.from_pretrained(model)
    expected = own.generate(torch.tensor(prompt)[None].long(), max_new_tokens=40, do_sample=False)[0, len(prompt) :]
    sampling = Sampling(max_tokens=40, temperature=0.0, stop_ids=codec.stop_ids)
    (response,) = write(model, prompt, sampling, samples=1)
    assert response.tokens.tolist() == expected.tolist()
    assert response.tokens[-1] in ids


def test_k6_of_a_configuration_within_a_configuration(model: Path) -> None:
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    del config["eos_token_id"]
    (model / "config.json").write_text(json.dumps(config | {"text_config": {"eos_token_id": [7, 9]}}))
    assert stop_ids(byte_tokenizer(), model) == (1, 7, 9)


def write(model: Path, prompt: Any, sampling: Sampling, samples: int, logprobs: bool = False) -> tuple[Any, ...]:
    engine = EmbeddedEngine.from_directory(model, slots=16, device="cpu")
    request = Request(
        key=0, prompt=SUM, prompt_tokens=prompt, samples=samples, sampling=sampling, want_logprobs=logprobs
    )
    (responses,) = generate(engine, [request])
    return responses


def test_ids_that_only_pad_the_vocabulary_are_never_sampled_and_the_ratio_is_one(model: Path) -> None:
    """Their weights are set so that they would be drawn often."""
    own = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        own.lm_head.weight[:TEXTS].mul_(0.2)
    own.save_pretrained(model)
    assert ids_without_text(model) == tuple(range(TEXTS, 264))
    prompt = Codec(model).encode(SUM)
    logits = own(torch.tensor(prompt)[None].long()).logits[0, -1]
    assert logits.argmax() >= TEXTS, "greedily it is, as by `generate`"
    policy = Policy.open(model, device="cpu", temperature=0.7)
    for cut in ({"top_k": 1}, {"top_p": 0.5}, {}):
        sampling = Sampling(max_tokens=30, seed=1, temperature=0.7, **cut)
        responses = write(model, prompt, sampling, samples=8, logprobs=True)
        assert max(int(response.tokens.max()) for response in responses) < TEXTS
        for response in responses if not cut else ():
            ids = torch.tensor([*prompt.tolist(), *response.tokens.tolist()])
            logits = policy.model(ids[None]).logits[0, len(prompt) - 1 : -1] / 0.7
            learned = logits.log_softmax(-1).gather(-1, ids[len(prompt) :, None])[:, 0]
            np.testing.assert_allclose(response.behavior_logprobs, learned.detach().numpy(), atol=1e-4)


def test_f6_a_tokenizer_that_gives_up_in_rust_is_a_sentence(model: Path) -> None:
    def normalize(tokenizer: Tokenizer) -> None:
        tokenizer.normalizer = normalizers.Replace(Regex(ZEROS), "")

    edit_tokenizer(model, normalize)
    codec = Codec(model)
    zeros = Prompt(index=0, text="0" * 40, answer="")
    with pytest.raises(CodecError, match="the tokenizer cannot read '0000"):
        codec.encode(zeros)
    with pytest.raises(CodecError, match="the tokenizer cannot read '0000"):
        codec.encode_response(zeros.text)


# Chat templates

PLAIN = "{% for m in messages %}<u>{{ m.content }}</u>{% endfor %}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
LEAVES_OUT = "{% for m in messages if m.role != 'system' %}<u>{{ m.content }}</u>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (REFUSES, "refuses the system message (System role not supported)"),
        (LEAVES_OUT, "leaves the system message out"),
        ("{{ messages[0].content }}", "leaves the user message out"),
        (REFUSES.replace("'system'", "'user'"), "cannot be applied to the prompt 'driftproofuser'"),
        ("{% for m in messages %}", "cannot be applied to the prompt"),
    ],
)
def test_t01_k9_it_is_the_template_that_refuses_a_message(model: Path, template: str, words: str) -> None:
    (model / "chat_template.jinja").write_text(template)
    prompt = Prompt(index=0, text="1+1=", answer="2", system="be brief")
    with pytest.raises(CodecError) as caught:
        Codec(model).encode(prompt if "driftproofuser" not in words else SUM)
    assert f"the chat template of {model} {words}" in str(caught.value)
    if "system message" in words:
        assert "leave the system message out" in str(caught.value)
        codec = Codec(model)
        assert codec.decode(codec.encode(SUM)) == "<u>1+1=</u>"


def test_k9_is_refused_before_a_run(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(REFUSES)
    row = json.dumps({"prompt": "1+1=", "answer": "2", "system": "be brief"})
    (tmp_path / "sys.jsonl").write_text(f"{row}\n{row.replace('1+1', '1+2')}\n")
    done = train(recipe(tmp_path, model), "--task.name", "jsonl", "--task.path", tmp_path / "sys.jsonl",
                 "--task.heldout", 0, "--dry-run")  # fmt: skip
    assert done.code == 2
    assert "refuses the system message (System role not supported); leave the system message out" in done.stderr


SLOW = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
LARGE = "{% set ns = namespace(x='a') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
LONG = "{% for a in range(99999) %}{{ '0123456789' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (SLOW, "is not done after"),
        (f"{{% if messages[0].content == '1+1=' %}}{SLOW}{{% endif %}}", "is not done after"),
        (LARGE, "takes more than 2 GiB of memory"),
        ("{{ 'a' * 10 ** 11 }}", "takes more than 2 GiB of memory"),
        (LONG, "characters of a prompt of 4"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be applied"),
    ],
)
def test_f14_a_template_has_limits(model: Path, template: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driftproof.tasks.chat.RENDER_SECONDS", 0.5)
    (model / "chat_template.jinja").write_text(template + PLAIN)
    with pytest.raises(CodecError, match=words):
        Codec(model).encode(SUM)


def test_k13_t15_further_templates_are_kept_and_all_of_them_tell_models_apart(model: Path, tmp_path: Path) -> None:
    before = inspect_model(model).fingerprint
    (model / "chat_template.jinja").write_text("D{{ messages[0].content }}")
    with_template = inspect_model(model).fingerprint
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("T{{ messages[0].content }}")
    fingerprints = {before, with_template, inspect_model(model).fingerprint}
    for file, values in {
        "tokenizer_config.json": {"add_bos_token": True},
        "generation_config.json": {"eos_token_id": [1, 5]},
        "config.json": {"rms_norm_eps": 1e-3},
    }.items():
        change(model / file, **values)
        fingerprints.add(inspect_model(model).fingerprint)
    assert len(fingerprints) == 6
    last = inspect_model(model).fingerprint
    change(model / "generation_config.json", temperature=0.6)
    (model / "training.json").write_text("{}")
    assert inspect_model(model).fingerprint == last, "what determines no token"
    snapshot = Publisher(tmp_path / "snapshots", model).publish(0, {"w": torch.zeros(1)}).path
    assert AutoTokenizer.from_pretrained(snapshot).chat_template.keys() == {"default", "tool_use"}
    assert inspect_model(snapshot).fingerprint == last
    codec = Codec(snapshot)
    assert codec.decode(codec.encode(SUM)) == "D1+1="
    codec = Codec(snapshot, {"chat_template": "tool_use"})
    assert codec.decode(codec.encode(SUM)) == "T1+1="


# Files


def recipe(directory: Path, model: Path) -> Path:
    path = directory / "base.toml"
    path.write_text(f"""
[run]
steps = 2
[model]
path = "{model}"
[task]
name = "arithmetic"
[objective]
name = "grpo"
[sampling]
max_tokens = 20
[rollouts]
group_size = 4
[learner]
groups_per_step = 2
lr = 1e-3
[runtime]
mode = "sync"
[evaluation]
prompts = 0
[tracking]
tensorboard = false
""")
    return path


def published(model: Path, directory: Path, steps: int = 0) -> Path:
    """The snapshot of a policy after some steps of noise."""
    policy = Policy.open(model, device="cpu")
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(1e-4 * torch.randn_like(parameter), alpha=steps)
    return Publisher(directory, model).publish(steps, policy.published()).path


def logits(path: Path, **options: Any) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, **options)
    return model(torch.arange(2, 40)[None]).logits.float().detach()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_d2_d3_what_is_opened_is_what_was_trained(tmp_path: Path, dtype: torch.dtype) -> None:
    base = make(tmp_path / "base", Qwen2Config(**SHAPE, tie_word_embeddings=True), dtype)
    first, later = (published(base, tmp_path / "snapshots", steps) for steps in (0, 3))
    assert torch.equal(logits(first), logits(base, dtype=torch.float32))
    assert torch.equal(logits(later), logits(later, dtype=torch.float32))
    for path in (first, later):
        config = json.loads((path / "config.json").read_text())
        stored = {tensor.dtype for tensor in read_header(path / WEIGHTS).values()}
        assert (config["dtype"], stored) == ("float32", {"F32"})
        assert inspect_model(path).fingerprint == inspect_model(base).fingerprint
    changed = [differing(opened(base), opened(later)), differing(opened(base, torch.float32), opened(later))]
    assert changed[0] == changed[1] > 0


def opened(path: Path, dtype: torch.dtype | str = "auto") -> dict[str, Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(path, dtype=dtype).named_parameters())


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    return sum(int((before[name].float() != after[name].float()).sum()) for name in before)


def in_the_hubs_cache(model: Path, repository: Path) -> Path:
    snapshot = repository / "snapshots" / "c"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        shutil.copy(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    return snapshot


def test_d17_d20_a_run_of_the_hubs_cache(model: Path, tmp_path: Path) -> None:
    """Sharded by its base, with several ends of a response and ids without text; the ratio of fresh data is 1."""
    own = AutoModelForCausalLM.from_pretrained(model)
    (model / WEIGHTS).unlink()
    own.save_pretrained(model, max_shard_size="50KB")
    assert len(list(model.glob("model-*.safetensors"))) > 1
    change(model / "generation_config.json", eos_token_id=[1, *range(50, 60)])
    cached = in_the_hubs_cache(model, tmp_path / "hub" / "models--a--t")
    before = {path.name: path.read_bytes() for path in cached.iterdir()}
    run = tmp_path / "run"
    done = train(recipe(tmp_path, cached), "--run.directory", run, "--evaluation.prompts", 4)
    assert done.code == 0, done.stderr
    with Ledger(run / "ledger.sqlite") as ledger:
        steps = ledger.steps()
        groups = [record.group for record in ledger.records()]
    for step in steps:
        assert step["health/ratio_min"] == pytest.approx(1, abs=1e-4)
        assert step["health/ratio_max"] == pytest.approx(1, abs=1e-4)
    for group in groups:
        assert group.response_tokens.max() < TEXTS
        for tokens in group.split():
            assert len(tokens) == 20 or tokens[-1] in (1, *range(50, 60))
            assert not set(tokens[:-1].tolist()) & {1, *range(50, 60)}
    snapshot = run / "snapshots" / "step-00000000"
    assert not any(path.is_symlink() or path.stat().st_nlink != 1 for path in snapshot.iterdir())
    assert torch.equal(logits(snapshot), logits(cached))
    for name in ("generation_config.json", "config.json"):
        (snapshot / name).write_text("{}")
    assert {path.name: path.read_bytes() for path in cached.iterdir()} == before


def test_f8_a_link_out_of_the_model_directory_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"key": "sk-1"}')
    (model / "extra.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ModelError, match=r"extra.json is a link that leads out of the model, to .*secret.json"):
        inspect_model(model)
    (model / "extra.json").unlink()
    (model / "vocab.txt").symlink_to("config.json")
    (model / "broken.json").symlink_to("nowhere")
    os.mkfifo(model / "pipe.json")
    path = Publisher(tmp_path / "snapshots", model).publish(0, {"w": torch.zeros(1)}).path
    names = {file.name for file in path.iterdir()}
    assert "vocab.txt" in names
    assert not names & {"broken.json", "pipe.json", "extra.json"}
    assert not any(file.is_symlink() for file in path.iterdir())


def test_f9_a_full_disk_names_the_snapshot(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    publisher = Publisher(tmp_path / "snapshots", model)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        publisher.publish(3, {"w": torch.zeros(1)})
    assert caught.value.filename == str(tmp_path / "snapshots" / "step-00000003" / "config.json")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: (d / "adapter_config.json").write_text("{}"), "is an adapter, not a model; merge it"),
        (lambda d: next(d.glob("model-*2-of*.safetensors")).unlink(), "which its index of weights names"),
    ],
    ids=["adapter", "missing shard"],
)
def test_what_is_no_whole_model_is_refused(model: Path, edit: Callable[[Path], None], words: str) -> None:
    own = AutoModelForCausalLM.from_pretrained(model)
    (model / WEIGHTS).unlink()
    own.save_pretrained(model, max_shard_size="50KB")
    edit(model)
    with pytest.raises(ModelError, match=words):
        inspect_model(model)


def test_variables_of_the_chat_template_are_settings_of_the_model(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(PLAIN + "{% if enable_thinking is false %}<no thoughts>{% endif %}")
    thinking = "--model.chat_template_kwargs.enable_thinking"
    done = train(recipe(tmp_path, model), "--run.directory", tmp_path / "run", "--run.steps", 1, thinking, "false")
    assert done.code == 0, done.stderr
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        prompts = {Codec(model).decode(record.group.prompt_tokens) for record in ledger.records()}
    assert all(prompt.endswith("</u><no thoughts>") for prompt in prompts)
    done = train("--resume", tmp_path / "run", "--dry-run")
    assert "[model.chat_template_kwargs]\nenable_thinking = false" in done.stdout
    done = train(recipe(tmp_path, model), "--dry-run", thinking.replace("thinking", "thnking"), "false")
    assert done.code == 2
    assert "did you mean 'enable_thinking'?" in done.stderr


def test_f6_a_decoder_that_gives_up_in_rust_is_a_sentence(model: Path) -> None:
    def decode(tokenizer: Tokenizer) -> None:
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteLevel(), decoders.Fuse(), decoders.Replace(Regex(ZEROS), "")]
        )

    edit_tokenizer(model, decode)
    codec = Codec(model)
    with pytest.raises(CodecError, match="the tokenizer cannot write the text of some tokens"):
        codec.decode(codec.encode(Prompt(index=0, text="0" * 40, answer="")))
