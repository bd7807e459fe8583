from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftproof.tiny.tokenizers import byte_tokenizer, character_tokenizer

PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
CHARACTERS, BYTES = character_tokenizer(), byte_tokenizer()


@given(st.text(st.sampled_from(PRINTABLE)))
def test_characters_are_tokens(text: str) -> None:
    ids = CHARACTERS.encode(text)
    assert len(ids) == len(text)
    assert CHARACTERS.decode(ids) == CHARACTERS.decode(ids, skip_special_tokens=True) == text


@given(st.text(max_size=5), st.characters(exclude_characters=PRINTABLE, codec="utf-8"), st.text(max_size=5))
def test_a_character_without_token_is_refused_not_dropped(before: str, stranger: str, after: str) -> None:
    with pytest.raises(Exception, match="UNK"):
        CHARACTERS.encode(before + stranger + after)


@given(st.text(st.characters(codec="utf-8")))
def test_bytes_write_and_read_any_text(text: str) -> None:
    ids = BYTES.encode(text)
    assert ids == [byte + 2 for byte in text.encode()]
    assert BYTES.decode(ids) == BYTES.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("tokenizer", [CHARACTERS, BYTES])
@pytest.mark.parametrize("text", ["<eos>", "a<pad>b"])
def test_text_cannot_write_special_tokens(tokenizer: Any, text: str) -> None:
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(tokenizer.encode(text))
