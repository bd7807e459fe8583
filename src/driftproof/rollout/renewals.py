"""Renewing leases beside the work, so that a worker is never late for being busy."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

from driftproof.ledger.leases import Leases


@contextmanager
def renewals(
    connect: Callable[[], AbstractContextManager[Leases]], renew: Callable[[Leases], object], *, every: float
) -> Iterator[Callable[[], None]]:
    """A thread that calls `renew` at once and then every few seconds, whatever the worker's own thread is doing.

    Guarantees: it has a connection of its own, as SQLite's connections belong to one thread; what ends it is raised in
    the worker's thread, by the function that is given.
    """
    left = threading.Event()

    def run() -> None:
        with connect() as leases:
            renew(leases)
            while not left.wait(every):
                renew(leases)

    with ThreadPoolExecutor(1, thread_name_prefix="renewals") as executor:
        ended = executor.submit(run)
        try:
            yield lambda: ended.result() if ended.done() else None
        finally:
            left.set()
