"""A reader holds the checkpoint that it reads, and the writer leaves a held one where it is.

Held is a folder by a shared `flock`, which changes nothing in it and ends with the process that has it. Some network
file systems have no such locks: there nothing is held, and a reader starts over when its checkpoint has gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@contextmanager
def held_for_reading(folder: Path) -> Iterator[bool]:
    """Hold a checkpoint; yields whether it is there to be read, so False if it is going or gone."""
    with _locked(folder, fcntl.LOCK_SH) as locked:
        yield locked


@contextmanager
def held_for_removal(folder: Path) -> Iterator[bool]:
    """Keep readers off a checkpoint; yields whether it may go, so False while somebody reads it."""
    with _locked(folder, fcntl.LOCK_EX) as locked:
        yield locked


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[bool]:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        yield _lock(handle, kind) and _still_named(handle, folder)
    finally:
        os.close(handle)


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
    return True


def _still_named(handle: int, folder: Path) -> bool:
    # Between opening and locking, the folder may have been renamed, and another may have got its name.
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False
