"""Text to token ids and back, by the learner's tokenizer: the only place where either is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from driftproof.errors import CodecError
from driftproof.types import Prompt
from driftproof.weights.models import encode_prompt, load_tokenizer, render_prompt, stop_ids


class Codec:
    """The tokenizer of a model directory."""

    def __init__(self, model: Path) -> None:
        """Raises ModelError where there is no usable tokenizer."""
        self._tokenizer: Any = load_tokenizer(model)
        self.eos_id = int(self._tokenizer.eos_token_id)
        self.stop_ids = stop_ids(self._tokenizer, model)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, through the chat template where there is one.

        Raises:
            CodecError: the tokenizer has no tokens for it.
        """
        with _readable(prompt.text):
            return encode_prompt(self._tokenizer, prompt)

    def render(self, prompt: Prompt) -> str:
        """The text that `encode` makes tokens of, through the chat template where there is one."""
        return render_prompt(self._tokenizer, prompt)

    def encode_response(self, text: str) -> list[int]:
        """Token ids of a recorded response, which ends with the end-of-sequence token.

        Raises:
            CodecError: the tokenizer has no tokens for it.
        """
        with _readable(text):
            return [*self._tokenizer.encode(text, add_special_tokens=False), self.eos_id]

    def decode(self, tokens: list[int]) -> str:
        """The text of response tokens, special tokens left out."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


@contextmanager
def _readable(text: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The tokenizers library raises nothing narrower.
        raise CodecError(
            f"the tokenizer cannot read {text[:60]!r}: {error}; use a model whose tokenizer covers this text "
            "(`driftproof tiny-model DIR --tokenizer bytes` reads any)"
        ) from error
