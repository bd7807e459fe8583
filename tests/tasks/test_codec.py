"""Prompts are tokenized once, by one thread at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from driftproof.errors import CodecError
from driftproof.tasks import arithmetic, codec
from driftproof.tasks.codec import Codec, encode_prompt
from driftproof.types import Prompt
from driftproof.weights.models import load_tokenizer

PROMPT = Prompt(index=0, text="47+85=", answer="132")


@pytest.fixture
def counted(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Codec, list[Prompt]]:
    """A codec, and the prompts for which it has asked its tokenizer."""
    asked: list[Prompt] = []
    encode = codec.encode_prompt
    monkeypatch.setattr(
        codec, "encode_prompt", lambda tokenizer, prompt: asked.append(prompt) or encode(tokenizer, prompt)
    )
    return Codec(tiny_model_dir), asked


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


def test_a_prompt_without_chat_template_is_its_text(tiny_model_dir: Path):
    tokenizer = load_tokenizer(tiny_model_dir)
    tokens = encode_prompt(tokenizer, Prompt(index=0, text="12+34=", answer="46"))
    assert tokenizer.decode(tokens) == "12+34="
    with_system = encode_prompt(tokenizer, Prompt(index=0, text="12+34=", answer="46", system="Add."))
    assert tokenizer.decode(with_system) == "Add.\n12+34="


def test_a_chat_template_is_applied_up_to_the_assistants_turn(tiny_model_dir: Path):
    tokenizer = load_tokenizer(tiny_model_dir)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    tokens = encode_prompt(tokenizer, Prompt(index=0, text="12+34=", answer="46", system="Add."))
    assert tokenizer.decode(tokens) == "[system] Add.\n[user] 12+34=\n[assistant] "
    assert all(isinstance(token, int) for token in tokens)


def test_a_conversation_goes_through_the_chat_template_or_is_refused(tiny_model_dir: Path):
    made = Codec(tiny_model_dir)
    prompt = replace(PROMPT, turns=(("user", "1+1="), ("assistant", "2")), source="data.jsonl:3")
    with pytest.raises(CodecError, match=r"data\.jsonl:3: the prompt '47\+85=' is a conversation of several turns"):
        made.encode(prompt)
    made._tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert made.decode(made.encode(prompt)) == "1+1=247+85="
    assert made.decode(made.encode(PROMPT)) == "47+85="
