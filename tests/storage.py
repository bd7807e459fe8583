"""Storage that cannot be written."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Nobody can change anything in a directory, root neither."""
    on, off = (["chattr", "-R", "+i"], ["chattr", "-R", "-i"])
    if os.geteuid() != 0:
        on, off = (["chmod", "-R", "a-w"], ["chmod", "-R", "u+w"])
    try:
        # Symbolic links have no attributes, of which chattr complains.
        subprocess.run([*on, str(directory)], check=False, capture_output=True)
        if os.geteuid() == 0 and "i" not in _attributes(directory):
            pytest.skip("this file system has no immutable directories")
        yield
    finally:
        subprocess.run([*off, str(directory)], check=False, capture_output=True)


def _attributes(directory: Path) -> str:
    return subprocess.run(["lsattr", "-d", str(directory)], check=False, capture_output=True, text=True).stdout[:22]
