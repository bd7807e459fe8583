"""A stranger's rollout worker over the inbox: guesses digits, and notes what the inbox told it was accepted.

    python -m benchmarks.chaos.worker RUN NOTES

It outlives whatever it talks to: what was not answered is sent again, and after some time given up.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from benchmarks.chaos.witness import acknowledged, append

ATTEMPTS = 20
PAUSE_SECONDS = 0.25


def call(run: Path, path: str, body: Any = None) -> Any:
    """Ask the inbox; its address and token are read anew each time, for it may have been started again."""
    url = json.loads((run / "inbox.json").read_text())["url"]
    headers = {
        "Authorization": f"Bearer {(run / 'inbox.token').read_text().strip()}",
        "Content-Type": "application/json",
    }
    with urlopen(Request(url + path, body and json.dumps(body).encode(), headers), timeout=30) as answer:
        return json.load(answer)


def persistently(run: Path, path: str, body: Any = None) -> Any | None:
    for _ in range(ATTEMPTS):
        try:
            return call(run, path, body)
        except (OSError, ValueError):  # no inbox now, half an answer, 503
            time.sleep(PAUSE_SECONDS)
    return None


def response(prompt: dict[str, Any]) -> dict[str, Any]:
    digits = random.choices(prompt["prompt_tokens"], k=random.randint(1, prompt["sampling"]["max_tokens"] - 1))
    return {"tokens": [*digits, prompt["sampling"]["stop_ids"][0]], "finish_reason": "stop"}


def main() -> None:
    run, notes = map(Path, sys.argv[1:])
    name = f"stranger-{random.randrange(10**6)}"
    while True:
        answer = persistently(run, f"/prompts?n=4&worker={name}")
        for prompt in answer["prompts"] if answer else []:
            responses = [response(prompt) for _ in range(prompt["samples"])]
            group = {"dispatch": prompt["dispatch"], "worker": name, "responses": responses}
            outcomes = persistently(run, "/groups", {"groups": [group]})
            if outcomes and outcomes["groups"][0]["outcome"] == "accepted":
                append(notes, acknowledged(prompt, responses))
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
