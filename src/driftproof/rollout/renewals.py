"""Renewing leases beside the work, so that a worker is never late for being busy.

Guarantees: while the thread runs, `renew` is called again and again, whatever the worker's own thread is doing; it has
a connection of its own, as SQLite's connections belong to one thread; what ends it is raised in the worker's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Self

from driftproof.ledger.leases import Leases


class Renewals:
    """A thread that calls `renew` at once and then every few seconds, until it is left.

    with Renewals(partial(LocalLeases, path), renew, every=30.0) as renewals:
        while working:
            renewals.check()
            work()
    """

    def __init__(
        self, connect: Callable[[], AbstractContextManager[Leases]], renew: Callable[[Leases], object], *, every: float
    ) -> None:
        self._connect = connect
        self._renew = renew
        self._every = every
        self._left = threading.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="renewals")
        self._ended: Future[None] | None = None

    def check(self) -> None:
        """Raise in this thread what has ended the renewals, if anything has."""
        if self._ended and self._ended.done():
            self._ended.result()

    def __enter__(self) -> Self:
        self._ended = self._executor.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._executor.shutdown()

    def _run(self) -> None:
        with self._connect() as leases:
            self._renew(leases)
            while not self._left.wait(self._every):
                self._renew(leases)
