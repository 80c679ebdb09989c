"""`xlstm` with a fault in one process of several: what FAULT says, in the process that FAULTY names."""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import Any


def full_disk() -> None:
    """Files cannot grow beyond a few bytes, once training has begun."""
    from xlstm_jax.runs.storage import AsyncWriter

    start = AsyncWriter.start

    def limited(*arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        start(*arguments)

    AsyncWriter.start = limited  # type: ignore[method-assign]


def unreadable_store() -> None:
    """The store's folder is closed to this process."""
    import xlstm_jax.training.run_store as run_store

    def refused(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    run_store.open_store = refused  # type: ignore[assignment]


def hangs() -> None:
    """Rows do not come any more."""
    from xlstm_jax.data.store import Loader

    read = Loader.__call__

    def late(self: Loader, step: int, rows: Any = None) -> Any:
        if step == 9:
            time.sleep(600)
        return read(self, step, rows)

    Loader.__call__ = late  # type: ignore[method-assign]


def raises() -> None:
    """A bug of ours, in the middle."""
    from xlstm_jax.training.loop import Loop

    record = Loop._record

    def failing(self: Loop, step: int, *arguments: Any) -> None:
        if step == 9:
            raise ArithmeticError("planted")
        record(self, step, *arguments)

    Loop._record = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    from xlstm_jax.cli import main

    if os.environ.get("FAULTY") == os.environ["JAX_PROCESS_ID"]:
        globals()[os.environ["FAULT"]]()
    sys.exit(main())
