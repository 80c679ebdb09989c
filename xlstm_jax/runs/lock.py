"""One writer at a time: a lock that the kernel gives back by itself when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

from xlstm_jax.runs.errors import RunLockedError, RunNotFoundError

_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """An exclusive lock on a run, held by one `RunLock` object at a time; readers need none.

    It is `flock` on a small file, so it ends with its process, also under `kill -9`; the note inside (process, host,
    time) is only for the message and never decides anything. The file stays where it is: to delete it would let two
    processes hold locks on two files of one name.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        return self._handle is not None

    def acquire(self) -> Self:
        """Take the lock.

        Raises:
            RunLockedError: if someone else has it, naming process and host.
            RunNotFoundError: if the folder for the lock is missing.
        """
        if self._handle is not None:
            raise RunLockedError(f"{self.path.parent} is already locked by this very process ({os.getpid()})")
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, NotADirectoryError):
            raise RunNotFoundError(f"{self.path.parent} is not a folder, so it cannot be locked") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.pread(handle, 4096, 0))
            os.close(handle)
            raise RunLockedError(f"{self.path.parent} is being written by {holder}; wait or stop it") from None
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _held.add(self)
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(note).encode(), 0)
        except OSError:
            pass  # a full disk has no room for the note; the lock holds without it
        return self

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _held.discard(self)
            os.close(handle)

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _holder(note: bytes) -> str:
    try:
        record = json.loads(note)
        return f"process {record['pid']} on {record['host']} since {record['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _forget_in_child() -> None:
    # A forked child shares the open file and would keep the lock alive after its parent's death.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_forget_in_child)
