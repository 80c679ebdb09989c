"""Disk space: how much a checkpoint takes, whether it is there, and how its lack looks."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlstm_jax.runs.errors import DiskFullError


def bytes_needed(state: Mapping[str, Any]) -> int:
    """Disk space for one checkpoint of a state (arrays, or their `ShapeDtypeStruct`s), at most."""
    import jax

    leaves = jax.tree.leaves(dict(state))
    arrays = sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves)
    # Beside the numbers: chunk indices and one line of metadata an array, a few files a part.
    return arrays + arrays // 50 + 4096 * len(leaves) + 65536 * len(state)


def check_space(folder: Path, size: int, count: int = 1) -> None:
    """See that `count` checkpoints of `size` bytes fit on the disk of `folder`, which need not be there yet.

    Raises:
        DiskFullError: with the space that is needed and the space that is free.
    """
    needed = size * max(count, 0)
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        what = "a checkpoint needs" if count == 1 else f"{count} checkpoints need"
        raise DiskFullError(
            f"{what} {bytes_in_words(needed)}, but the disk of {folder} has {bytes_in_words(free)} free"
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that of a full disk (TensorStore says so in its text alone)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def bytes_in_words(count: float) -> str:
    """`1536` -> `"1.5 kB"` (powers of 1000, as disks are sold and `df -H` counts)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
