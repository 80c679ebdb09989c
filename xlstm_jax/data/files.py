"""Files that are either whole or absent, however the process ends."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from xlstm_jax.data.errors import DataError, DiskFullError, WriteError

TEMPORARY = ".tmp"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path`, complete and on disk, when the block ends without an error.

    Raises:
        DiskFullError: no space (or quota) left; nothing appears at `path`.
        WriteError: it cannot be written for another reason.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space left on the disk while writing {path}; free some and run the same command again: "
                "what is finished is kept"
            ) from error
        if isinstance(error, OSError) and not isinstance(error, DataError):
            raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with atomic_write(path) as file:
        # A file name that is not UTF-8 has half surrogates in it, which JSON can hold as escapes only.
        file.write(text.encode("utf-8", "backslashreplace"))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array` as `.npy`, atomically."""
    # Through memory: straight to a file, NumPy reports a full disk without its error number.
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def check_space(folder: Path, needed: int) -> None:
    """Raise `DiskFullError` if fewer than `needed` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{folder} needs {needed / 1e6:,.0f} MB more, but only {free / 1e6:,.0f} MB are free on its disk; free "
            "some and run the same command again: what is finished is kept"
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed `atomic_write` left in `folder`."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once its folder is; not every file system lets a folder be opened for that.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
