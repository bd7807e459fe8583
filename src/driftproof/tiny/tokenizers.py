"""Tokenizers without merges: a character or a byte is a token, and nothing is dropped.

Guarantees: what is encoded is decoded exactly; a text that contains the words of a special token does not write it.
"""

from collections.abc import Sequence
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TokenizerKind = Literal["characters", "bytes"]

CONTEXT = 16_384
"""Most tokens of a sequence."""
PAD, EOS = "<pad>", "<eos>"


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One id per printable ASCII character or newline. Encoding any other character raises, it is never dropped."""
    # Without an unknown token in the vocabulary a word-level model refuses what it cannot write.
    backend = Tokenizer(models.WordLevel(_vocabulary(CHARACTERS), unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return _wrap(backend)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte of UTF-8: byte b has id b + 2. Every text can be written and is decoded exactly."""
    # Byte-level tokenizers write a byte that prints as itself, and the k-th of the others as the character 256 + k.
    printable = {ord(c) for c in pre_tokenizers.ByteLevel.alphabet()} & set(range(256))
    others = iter(range(256, 512))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    backend = Tokenizer(models.BPE(vocab=_vocabulary(letters), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrap(backend)


CHARACTERS = [*map(chr, range(32, 127)), "\n"]
TOKENIZERS = {"characters": character_tokenizer, "bytes": byte_tokenizer}


def _vocabulary(letters: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate([PAD, EOS, *letters])}


def _wrap(backend: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        # A dataset that contains the text "<eos>" does not write the stop token.
        split_special_tokens=True,
    )
