"""A rollout worker: python rollout_worker.py RUN, beside `driftproof inbox RUN`. Put your model into `write`."""

import json
import random
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

run = Path(sys.argv[1])
url, token = json.loads((run / "inbox.json").read_text())["url"], (run / "inbox.token").read_text().strip()


def call(path, body=None):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urlopen(Request(url + path, body and json.dumps(body).encode(), headers)) as answer:
        return json.load(answer)


def write(prompt):
    return {"text": random.choice("0123456789"), "finish_reason": "stop"}


while (answer := call("/prompts?n=4&worker=example"))["state"] == "running":
    for prompt in answer["prompts"]:
        responses = [write(prompt) for _ in range(prompt["samples"])]
        call("/groups", {"groups": [{"dispatch": prompt["dispatch"], "worker": "example", "responses": responses}]})
    time.sleep(answer["retry_after_seconds"])
