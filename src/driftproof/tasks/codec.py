"""Text to token ids and back, by the learner's tokenizer: the only place where either is made.

Guarantees: a prompt is tokenized once by each process, as long as its tokens find room in `REMEMBERED_TOKENS`; any
number of threads may use one codec.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from driftproof.errors import CodecError
from driftproof.types import Prompt, Tokens
from driftproof.weights.models import load_tokenizer, stop_ids

REMEMBERED_TOKENS = 16 * 2**20
"""Tokens of prompts that a codec keeps, 64 MiB of them; prompts beyond are tokenized whenever they are asked for."""


class Codec:
    """The tokenizer of a model directory."""

    def __init__(self, model: Path) -> None:
        """Raises ModelError where there is no usable tokenizer."""
        self._tokenizer: Any = load_tokenizer(model)
        self.eos_id = int(self._tokenizer.eos_token_id)
        self.stop_ids = stop_ids(self._tokenizer, model)
        # A tokenizer must not be used by two threads at once.
        self._lock = threading.Lock()
        self._prompts: dict[tuple[object, ...], Tokens] = {}
        self._remembered = 0

    def encode(self, prompt: Prompt) -> Tokens:
        """Token ids of a prompt, int32 [P], not to be written to; through the chat template where there is one;
        CodecError where the tokenizer has no tokens for it."""
        key = (prompt.system, prompt.turns, prompt.text)
        with self._lock:
            known = self._prompts.get(key)
            if known is not None:
                return known
            with _readable(prompt.text):
                tokens = np.array(encode_prompt(self._tokenizer, prompt), dtype=np.int32)
            tokens.setflags(write=False)
            if self._remembered + len(tokens) <= REMEMBERED_TOKENS:
                self._prompts[key] = tokens
                self._remembered += len(tokens)
            return tokens

    def render(self, prompt: Prompt) -> str:
        """The text that `encode` makes tokens of, without the token that every text begins with."""
        if self._tokenizer.chat_template is None:
            return _plain_text(prompt)
        chat = chat_messages(prompt)
        text = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return str(text).removeprefix(self._tokenizer.bos_token or "")

    def encode_response(self, text: str) -> list[int]:
        """Token ids of a response that is known as text, the end-of-sequence token behind them; CodecError where
        the tokenizer has none for it."""
        with self._lock, _readable(text):
            return [*self._tokenizer.encode(text, add_special_tokens=False), self.eos_id]

    def decode(self, tokens: ArrayLike) -> str:
        """The text of response tokens, special tokens left out."""
        with self._lock:
            return str(self._tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=True))


@contextmanager
def _readable(text: str) -> Iterator[None]:
    try:
        yield
    except CodecError:
        raise
    except Exception as error:
        # The tokenizers library raises nothing narrower.
        raise CodecError(
            f"the tokenizer cannot read {text[:60]!r}: {error}; use a model whose tokenizer covers this text "
            "(`driftproof tiny-model DIR --tokenizer bytes` reads any)"
        ) from error


def _plain_text(prompt: Prompt) -> str:
    if prompt.turns:
        raise CodecError(
            f"{prompt.source or 'a prompt'}: the prompt {prompt.text[:60]!r} is a conversation of several turns, and "
            "the model's tokenizer has no chat template to write it with; use a model that has one"
        )
    return f"{prompt.system}\n{prompt.text}" if prompt.system else prompt.text


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: through the chat template where the tokenizer has one, else the text as it is."""
    if tokenizer.chat_template is None:
        return list(tokenizer.encode(_plain_text(prompt)))
    encoded = tokenizer.apply_chat_template(chat_messages(prompt), add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def chat_messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the messages of a chat."""
    system = [("system", prompt.system)] if prompt.system else []
    messages = (*system, *prompt.turns, ("user", prompt.text))
    return [{"role": role, "content": content} for role, content in messages]
