"""A rollout worker: python rollout_worker.py RUN, beside `driftproof inbox RUN`. Put your model into `write`."""

import hmac
import json
import random
import secrets
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

run = Path(sys.argv[1])
url, token = json.loads((run / "inbox.json").read_text())["url"], (run / "inbox.token").read_text().strip()


def ask(connection, method, path, body=None, **headers):
    connection.request(method, path, body and json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    return json.loads(content) if answer.status == 200 else sys.exit(f"{url}{path}: {content[:1000]}")


def call(method, path, body=None):
    connection = HTTPConnection(url.removeprefix("http://"), timeout=300)
    connection.connect()
    # Whoever listens there proves to know the token before it is sent, and then over this connection alone.
    connection.auto_open = 0
    nonce = secrets.token_hex(16)
    expected = hmac.new(token.encode(), f"driftproof inbox {url} {nonce}".encode(), "sha256").hexdigest()
    if ask(connection, "GET", f"/identity?nonce={nonce}") != {"url": url, "proof": expected}:
        sys.exit(f"{url} is not the inbox of {run} any more; start it again: driftproof inbox {run}")
    return ask(connection, method, path, body, Authorization=f"Bearer {token}", **{"Content-Type": "application/json"})


def write(prompt):
    return {"text": random.choice("0123456789"), "finish_reason": "stop"}


while (answer := call("GET", "/prompts?n=4&worker=example"))["state"] == "running":
    for prompt in answer["prompts"]:
        responses = [write(prompt) for _ in range(prompt["samples"])]
        group = {"dispatch": prompt["dispatch"], "worker": "example", "responses": responses}
        call("POST", "/groups", {"groups": [group]})
    time.sleep(answer["retry_after_seconds"])
