"""Waiting for something that a cheap read tells."""

import time

SHORTEST, LONGEST, SHARE = 0.001, 0.05, 0.02
"""Seconds of a pause, at least and at most, and its share of the time waited so far."""


class Backoff:
    """Pauses that grow with the wait, so that a short one ends soon and a long one costs nothing."""

    def __init__(self) -> None:
        self._since: float | None = None

    def pause(self) -> float:
        """Sleep a little; for how many seconds."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        seconds = min(max((now - self._since) * SHARE, SHORTEST), LONGEST)
        time.sleep(seconds)
        return seconds

    def reset(self) -> None:
        """Begin with short pauses again: what was waited for has come."""
        self._since = None
