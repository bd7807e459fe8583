"""Errors of the disk and of the ledger in a sentence: whichever process meets them first, the user reads the same."""

import errno
import sqlite3
from pathlib import Path

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def write_trouble(error: Exception, run: Path) -> str | None:
    """The sentence for an error of the disk or of the ledger; None for any other."""
    if isinstance(error, sqlite3.OperationalError):
        held = "; a process of the run has held it for a minute" if "locked" in str(error) else ""
        return f"the ledger of {run} cannot be written: {error}{held}"
    if isinstance(error, sqlite3.DatabaseError):
        return f"the ledger of {run} is damaged: {error}"
    if isinstance(error, OSError) and (error.errno in _DISK or type(error) is OSError):
        return f"{error.filename or run} cannot be written: {error.strerror or error}"
    return None
