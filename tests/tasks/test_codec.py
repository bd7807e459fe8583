"""Prompts are tokenized once, by one thread at a time."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from driftproof.errors import CodecError, ConfigError
from driftproof.tasks import arithmetic, codec
from driftproof.tasks.codec import Codec
from driftproof.types import Prompt
from driftproof.weights.models import inspect_model

PROMPT = Prompt(index=0, text="47+85=", answer="132")
CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}{% if thinks is false %}no thoughts {% endif %}"
)


@pytest.fixture
def counted(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Codec, list[Prompt]]:
    """A codec, and the prompts for which it has asked its tokenizer."""
    asked: list[Prompt] = []
    encode = Codec._encode
    monkeypatch.setattr(Codec, "_encode", lambda self, prompt: asked.append(prompt) or encode(self, prompt))
    return Codec(tiny_model_dir), asked


@pytest.fixture
def chat_model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A model whose chat template has a variable."""
    path = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (path / "chat_template.jinja").write_text(CHAT)
    return path


def test_a_prompt_is_tokenized_once(counted: tuple[Codec, list[Prompt]]) -> None:
    made, asked = counted
    tokens = made.encode(PROMPT)
    assert (tokens.dtype, made.decode(tokens)) == (np.int32, PROMPT.text)
    assert made.encode(replace(PROMPT, index=9, answer="?")) is tokens, "what is read is the same"
    assert asked == [PROMPT]
    made.encode(replace(PROMPT, system="Add."))
    assert len(asked) == 2
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 0


def test_memory_is_bounded(counted: tuple[Codec, list[Prompt]], monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = counted
    prompts = arithmetic(digits=2).train[:20]
    monkeypatch.setattr(codec, "REMEMBERED_TOKENS", 40)
    first = [made.encode(prompt).tolist() for prompt in prompts]
    assert len(asked) == 20
    assert [made.encode(prompt).tolist() for prompt in prompts] == first
    assert 20 < len(asked) < 40


def test_many_threads_may_use_it(tiny_model_dir: Path) -> None:
    prompts = arithmetic(digits=2).train[:200]
    made = Codec(tiny_model_dir)
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(lambda prompt: made.decode(made.encode(prompt)), prompts * 4))
    assert found == [prompt.text for prompt in prompts] * 4


def test_a_prompt_without_chat_template_is_its_text(tiny_model_dir: Path) -> None:
    made = Codec(tiny_model_dir)
    assert made.decode(made.encode(PROMPT)) == "47+85="
    assert made.decode(made.encode(replace(PROMPT, system="Add."))) == "Add.\n47+85="


def test_a_chat_template_is_applied_up_to_the_assistants_turn(chat_model: Path) -> None:
    made = Codec(chat_model)
    prompt = replace(PROMPT, system="Add.")
    expected = "[system] Add.\n[user] 47+85=\n[assistant] "
    assert made.decode(made.encode(prompt)) == made.render(prompt) == expected


def test_variables_of_the_chat_template_are_those_of_every_prompt(chat_model: Path, tiny_model_dir: Path) -> None:
    made = Codec(chat_model, {"thinks": False})
    expected = "[user] 47+85=\n[assistant] no thoughts "
    assert made.decode(made.encode(PROMPT)) == made.render(PROMPT) == expected
    with pytest.raises(ConfigError, match=r"has 'thinsk', which the chat template .* not use; did you mean 'thinks'"):
        Codec(chat_model, {"thinsk": False})
    with pytest.raises(ConfigError, match="has 'tokenize', which driftproof decides on"):
        Codec(chat_model, {"tokenize": False})
    with pytest.raises(ConfigError, match="has no chat template; leave it out"):
        Codec(tiny_model_dir, {"thinks": False})


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("132", "132"), ("132<eos>", "132"), ("132<eos>\n", "132"), ("132<eos> <eos>\n\n", "132"), ("<eos>", "")],
)
def test_a_response_ends_in_one_end_of_sequence_token(tiny_model_dir: Path, text: str, tokens: str) -> None:
    made = Codec(tiny_model_dir)
    *body, end = made.encode_response(text)
    assert (made.decode(body), end) == (tokens, made.eos_id)
    assert made.eos_id not in body
    assert made.encode_response("a<eos>b \n")[-2:] == [*made.encode_response("\n")[:1], end]


def test_a_response_of_a_million_ends_is_read_at_once(tiny_model_dir: Path) -> None:
    made = Codec(tiny_model_dir)
    assert made.encode_response("1" + "<eos>" * 10**6) == made.encode_response("1")


def test_a_token_that_the_model_has_not_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A tokenizer may have special tokens beyond the model's vocabulary, as for images."""
    path = shutil.copytree(tiny_model_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.split_special_tokens = False
    tokenizer.save_pretrained(path)
    inspect_model(path)
    made = Codec(path)
    assert made.decode(made.encode(PROMPT)) == "47+85="
    with pytest.raises(CodecError, match="'1<image>' has the token '<image>', which the model, whose vocabulary is 98"):
        made.encode(replace(PROMPT, text="1<image>"))


def test_a_conversation_goes_through_the_chat_template_or_is_refused(tiny_model_dir: Path, chat_model: Path) -> None:
    prompt = replace(PROMPT, turns=(("user", "1+1="), ("assistant", "2")), source="data.jsonl:3")
    with pytest.raises(CodecError, match=r"data\.jsonl:3: the prompt '47\+85=' is a conversation of several turns"):
        Codec(tiny_model_dir).encode(prompt)
    made = Codec(chat_model)
    assert made.decode(made.encode(prompt)) == "[user] 1+1=\n[assistant] 2\n[user] 47+85=\n[assistant] "
    assert made.decode(made.encode(PROMPT)) == "[user] 47+85=\n[assistant] "


def test_a_template_that_leaves_earlier_messages_out_is_refused(chat_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(chat_model, tmp_path / "leaves-out")
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    (model / "chat_template.jinja").write_text(template)
    made = Codec(model)
    assert made.decode(made.encode(PROMPT)) == "47+85="
    with pytest.raises(CodecError, match="leaves earlier messages of the assistant out"):
        made.encode(replace(PROMPT, turns=(("user", "1+1="), ("assistant", "2"))))


def test_a_text_that_cannot_be_read_is_named_by_its_row(tiny_model_dir: Path) -> None:
    with pytest.raises(CodecError, match=r"^data\.jsonl:3: the tokenizer cannot read 'ß'"):
        Codec(tiny_model_dir).encode(replace(PROMPT, text="ß", source="data.jsonl:3"))


@pytest.mark.parametrize("adds", [True, False])
def test_text_for_servers_begins_as_they_would_begin_it(chat_model: Path, adds: bool) -> None:
    """A server puts the first token before a text where the tokenizer does; elsewhere it is the template's own."""
    (chat_model / "chat_template.jinja").write_text("<bos>user: {{ messages[0].content }}")
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    if adds:
        single = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = single
    tokenizer.save_pretrained(chat_model)
    config = json.loads((chat_model / "config.json").read_text())
    (chat_model / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer)}))
    expected = "user: 47+85=" if adds else "<bos>user: 47+85="
    assert Codec(chat_model).render(PROMPT) == expected
