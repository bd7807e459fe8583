"""Text to token ids and back, by the learner's tokenizer: the only place where either is made.

Guarantees: a prompt is tokenized once by each process, as long as its tokens find room in `REMEMBERED_TOKENS`; it does
not end in the token that ends a response, and a response that is known as text ends in one; any number of threads may
use one codec.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from driftproof.errors import CodecError, ConfigError
from driftproof.tasks.chat import ChatTemplate
from driftproof.types import Prompt, Tokens
from driftproof.weights.models import is_panic, load_tokenizer, read_vocabulary, readable, stop_ids

REMEMBERED_TOKENS = 16 * 2**20
"""Tokens of prompts that a codec keeps, 64 MiB of them; prompts beyond are tokenized whenever they are asked for."""
NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})


class Codec:
    """The tokenizer of a model directory, with its chat template where it has one."""

    def __init__(self, model: Path, chat_template_kwargs: Mapping[str, Any] = NO_VARIABLES) -> None:
        """`chat_template_kwargs` are variables of the chat template.

        Raises:
            ModelError: there is no usable tokenizer. ConfigError: the chat template has no such variable.
        """
        self.chat_template_kwargs = chat_template_kwargs
        self._tokenizer: Any = load_tokenizer(model)
        self._vocabulary = read_vocabulary(model)
        self._chat: ChatTemplate | None = None
        if self._tokenizer.chat_template is not None:
            self._chat = ChatTemplate(self._tokenizer, model, chat_template_kwargs)
        elif chat_template_kwargs:
            raise ConfigError(f"model.chat_template_kwargs is given, but {model} has no chat template; leave it out")
        self.eos_id = int(self._tokenizer.eos_token_id)
        self.stop_ids = stop_ids(self._tokenizer, model)
        added = {int(index): str(token) for index, token in self._tokenizer.added_tokens_decoder.items()}
        self._added = {*added, *self._tokenizer.all_special_ids}
        """Tokens that a tokenizer may put around a text."""
        ends = {text: index for index, text in added.items() if index in self.stop_ids}
        ends[str(self._tokenizer.eos_token)] = self.eos_id
        self._ends = dict(sorted(ends.items(), key=lambda end: -len(end[0])))
        """Tokens of their own that end a response, by their text, longest first."""
        begin = self._tokenizer.bos_token_id
        with readable(f"{model}: the tokenizer cannot be used"):
            self._begins = begin is not None and self._tokenizer.encode("")[:1] == [begin]
        # A tokenizer must not be used by two threads at once.
        self._lock = threading.Lock()
        self._prompts: dict[tuple[object, ...], Tokens] = {}
        self._remembered = 0

    def encode(self, prompt: Prompt) -> Tokens:
        """Token ids of a prompt, int32 [P], not to be written to; through the chat template where there is one;
        CodecError where the tokenizer has no tokens for it, or the template refuses it."""
        key = (prompt.system, prompt.turns, prompt.text)
        with self._lock:
            known = self._prompts.get(key)
            if known is not None:
                return known
            try:
                tokens = np.array(self._encode(prompt), dtype=np.int32)
            except CodecError as error:
                if not prompt.source or str(error).startswith(prompt.source):
                    raise
                raise CodecError(f"{prompt.source}: {error}") from error
            tokens.setflags(write=False)
            if self._remembered + len(tokens) <= REMEMBERED_TOKENS:
                self._prompts[key] = tokens
                self._remembered += len(tokens)
            return tokens

    def render(self, prompt: Prompt) -> str:
        """The text that `encode` makes tokens of, without the token that every text begins with."""
        if self._chat is None:
            return _plain_text(prompt)
        text = self._chat.render(prompt)
        # Where the tokenizer begins no text by itself, the template's first token is its own.
        return text.removeprefix(self._tokenizer.bos_token) if self._begins else text

    def encode_response(self, text: str) -> list[int]:
        """Token ids of a response that is known as text, behind them one end-of-sequence token, which the text may end
        in; CodecError where the tokenizer has none for it."""
        text, end = self._without_end(text)
        with self._lock:
            return [*self._tokens(text, text, add_special_tokens=False), end]

    def show(self, tokens: ArrayLike) -> str:
        """The text of tokens as a model reads them, special tokens included."""
        with self._lock:
            return str(self._tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=False))

    def decode(self, tokens: ArrayLike) -> str:
        """The text of response tokens, special tokens left out; CodecError where the tokenizer gives up."""
        with self._lock, _readable("the tokenizer cannot write the text of some tokens"):
            return str(self._tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=True))

    def _encode(self, prompt: Prompt) -> list[int]:
        if self._chat is not None:
            return self._tokens(self._chat.render(prompt), prompt.text, add_special_tokens=False)
        text = _plain_text(prompt)
        tokens = self._tokens(text, prompt.text, add_special_tokens=True)
        if not tokens or tokens[-1] not in self._added:
            return tokens
        # Some tokenizers end every text with the token that ends a response, which a prompt leaves to the model.
        bare = self._tokens(text, prompt.text, add_special_tokens=False)
        starts = (start for start in range(len(tokens) - len(bare) + 1) if tokens[start : start + len(bare)] == bare)
        start = next(starts, None)
        return tokens if start is None else tokens[: start + len(bare)]

    def _tokens(self, text: str, of: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; errors name the prompt or response `of` which it is made."""
        with _readable(f"the tokenizer cannot read {of[:60]!r}"):
            tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        if tokens and max(tokens) >= self._vocabulary:
            raise CodecError(
                f"{of[:60]!r} has the token {self._tokenizer.convert_ids_to_tokens(max(tokens))!r}, which the model, "
                f"whose vocabulary is {self._vocabulary}, does not know; leave it out"
            )
        return tokens

    def _without_end(self, text: str) -> tuple[str, int]:
        """A response's text without the end-of-sequence tokens that it ends in, and the first of them."""
        length, end = len(text), self.eos_id
        while True:
            shorter = length
            while shorter and text[shorter - 1].isspace():
                shorter -= 1
            found = next((token for token in self._ends if text.endswith(token, 0, shorter)), None)
            if found is None:
                return text[:length], end
            length, end = shorter - len(found), self._ends[found]


@contextmanager
def _readable(problem: str) -> Iterator[None]:
    try:
        yield
    except CodecError:
        raise
    except BaseException as error:
        # The tokenizers library raises nothing narrower; its regular expressions may give up outside of `Exception`.
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise CodecError(
            f"{problem}: {error}; use a model whose tokenizer covers this text "
            "(`driftproof tiny-model DIR --tokenizer bytes` reads any)"
        ) from error


def _plain_text(prompt: Prompt) -> str:
    if prompt.turns:
        raise CodecError(
            f"{prompt.source or 'a prompt'}: the prompt {prompt.text[:60]!r} is a conversation of several turns, and "
            "the model's tokenizer has no chat template to write it with; use a model that has one"
        )
    return f"{prompt.system}\n{prompt.text}" if prompt.system else prompt.text
