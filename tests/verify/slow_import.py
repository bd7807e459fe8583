"""A verifier that takes a second to import, and whose answers can hang."""

import time

time.sleep(1.0)


def verify(text: str, answer: str) -> float:
    if text == "hang":
        time.sleep(1000)
    return 1.0
