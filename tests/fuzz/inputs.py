"""Inputs that are nearly right: real ones with some bytes, or some values, changed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = (-1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**63, 10**18, -(10**18), 10**400, 0.0, -0.5, 1e-9, 1e300, 1e999, -1e999)
WORDS = (
    "",
    "null",
    "true",
    "main",
    "../x",
    "/dev/null",
    "hf:a:b",
    "bfloat16",
    "auto",
    "\x00",
    "\ud800",
    "é",
    "a" * 300,
)

numbers = st.sampled_from(NUMBERS) | st.integers(-3, 300) | st.floats()
words = st.sampled_from(WORDS) | st.text(max_size=8)
scalars = st.none() | st.booleans() | numbers | words
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)


@st.composite
def changed_bytes(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """One of `originals` with up to three pieces replaced, removed, inserted or cut off; or no bytes of it at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=64))
    content = draw(st.sampled_from(list(originals)))
    for _ in range(draw(st.integers(0, 3))):
        start = _place(draw, len(content))
        stop = start + draw(st.sampled_from((0, 1, 1, 2, 8, 64)))
        replacement = draw(st.binary(max_size=9))
        tail = b"" if draw(st.integers(0, 7)) == 0 else content[stop:]
        content = content[:start] + replacement + tail
    return content


def _place(draw: st.DrawFn, length: int) -> int:
    """Anywhere, and often near the beginning, where headers are."""
    return draw(st.integers(0, min(length, 200)) | st.integers(0, length))


@st.composite
def changed_tree(draw: st.DrawFn, originals: Sequence[Any], values: st.SearchStrategy[Any] = json_values) -> Any:
    """One of `originals` (dicts, lists, scalars) with up to three nodes replaced, removed or added."""
    if draw(st.integers(0, 19)) == 0:
        return draw(values)
    tree = copy.deepcopy(draw(st.sampled_from(list(originals))))
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("replace", "replace", "remove", "add", "again"))):
            case "replace":
                holder[key] = draw(values)
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(words)] = draw(values)
            case "again" if isinstance(holder, list):
                holder.insert(0, copy.deepcopy(holder[key]))
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every node below `tree`, as what holds it and its key there."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [place for key in keys for place in ((tree, key), *_places(tree[key]))]
