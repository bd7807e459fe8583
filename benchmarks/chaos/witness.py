"""What is known of a run from outside its ledger: notes of every accepted commit and every trained batch.

Guarantees: a note is one line, appended by one write, after what it tells of has happened and before anything follows
from it. Needs nothing but numpy: it is imported into every process of a storm.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

NOTES = "notes.jsonl"
"""In the directory of the faults: what the processes of the run noted."""
ACKNOWLEDGED = "acknowledged.jsonl"
"""There, too: what workers over the inbox were told was accepted."""


def append(notes: Path, note: Mapping[str, Any]) -> None:
    descriptor = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, json.dumps(note).encode() + b"\n")
    finally:
        os.close(descriptor)


def read(notes: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def digest(parts: Iterable[Any]) -> str:
    """Of arrays, in their order."""
    hashed = hashlib.blake2b(digest_size=12)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def content(group: Any) -> str:
    """Digests of a group's tokens and of its rewards, with a dash between."""
    tokens = digest((group.prompt_tokens, group.response_tokens, group.response_lengths))
    return f"{tokens}-{digest([group.rewards])}"


def acknowledged(prompt: Mapping[str, Any], responses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a worker over the inbox knows of a group: all but the rewards."""
    import numpy as np

    lists = [response["tokens"] for response in responses]
    arrays = (prompt["prompt_tokens"], [token for tokens in lists for token in tokens], list(map(len, lists)))
    return {"dispatch": prompt["dispatch"], "tokens": digest(np.array(array, np.int32) for array in arrays)}


def weights(parameters: Iterable[tuple[str, Any]]) -> str:
    """Digest of named tensors."""
    return digest(
        value.detach().cpu().contiguous().numpy() for _, value in sorted(parameters, key=lambda item: item[0])
    )
