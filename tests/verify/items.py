"""Items to be scored, in short."""

from __future__ import annotations

from driftproof.verify import Item


def item(response: str, answer: str = "", prompt: str = "") -> Item:
    return Item(response=response, answer=answer, prompt=prompt)
