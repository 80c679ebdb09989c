"""Files and folders that are whole or absent, however the process ends; their sums, the space for them, and locks.

What is written gets its name last, when it is on the disk. Until then it is a hidden neighbour that ends in `.tmp`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np

_TEMPORARY = ".tmp"
_NO_SYNC_HERE = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class WriteError(OSError):
    """A file or folder that cannot be written; the message names it and says why."""


class ExistsError(WriteError, FileExistsError):
    """There is something at the path already; nothing was written."""


class DiskFullError(WriteError):
    """There is no room: the message says for what and how much, where it is known, on which disk, and what is free."""


class LostError(WriteError):
    """The folder that is being written was taken away from under its writer."""


class LockedError(BlockingIOError):
    """Another process holds the lock; the message says which."""


# -- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path`, complete and on the disk, when the block ends without an error.

    Until then readers see the old file, or none.

    Raises:
        DiskFullError: no space (or quota) is left.
        WriteError: it cannot be written for another reason.
    """
    temporary = _hidden(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # A failed `write` does not say of what; an error that names another file is not about this one.
        if isinstance(error, OSError) and error.errno and str(error.filename or temporary) == str(temporary):
            raise write_error(path, error) from error
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace the file `path` by `content`; see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """Write `value` as indented JSON; see `open_atomic`."""
    # A file name that is not UTF-8 has half surrogates in it, which JSON can hold as escapes only.
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def read_json_object(path: Path, error: type[Exception]) -> dict[str, Any]:
    """The JSON object in a file; raises `error` if the file cannot be read, or holds something else."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror}") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is damaged: it is not JSON ({cause})") from cause
    if not isinstance(data, dict):
        raise error(f"{path} is damaged: it holds a {type(data).__name__} instead of an object")
    return data


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array` as `.npy`; see `open_atomic`."""
    import numpy as np

    # Through memory: straight to a file, NumPy reports a full disk without its error number.
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with open_atomic(path) as file:
        file.write(buffer.getbuffer())


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed `open_atomic` or `appearing_folder` left in `folder`; for its one writer."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sha256_of(path: Path, *, sync: bool = False) -> str:
    """The SHA-256 sum of a file, in hex; with `sync` its content is on the disk afterwards."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return digest


# -- folders ----------------------------------------------------------------------------------------------------------


@contextmanager
def appearing_folder(path: Path, needed: int = 0) -> Iterator[Path]:
    """A folder to fill that becomes `path`, all of it on the disk, when the block ends well, and vanishes otherwise.

    Args:
        path: of a folder that is not there yet; those above it are made.
        needed: bytes that will be written.

    Raises:
        ExistsError: if there is something at `path`.
        DiskFullError: if the disk is too small, or was.
        WriteError: if the folder cannot be made.
    """
    refuse_existing(path)
    check_space(path, needed, f"{path} needs")
    temporary = _hidden(path.absolute())
    made: list[Path] = []
    try:
        for folder in (*reversed(temporary.parents), temporary):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
    except OSError as error:
        _remove_empty(made)
        raise WriteError(f"{path} cannot be made: {error.strerror}") from error
    try:
        yield temporary
        _sync_tree(temporary)
        refuse_existing(path)
        os.rename(temporary, path)
        sync_folder(temporary.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made[:-1])
        if isinstance(error, Exception) and is_disk_full(error) and not isinstance(error, DiskFullError):
            raise write_error(path, error) from error
        raise


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder; see `appearing_folder`."""
    with appearing_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def refuse_existing(path: Path) -> None:
    """Raise `ExistsError` if there is something at `path`."""
    if path.exists() or path.is_symlink():
        raise ExistsError(f"{path} is there already; nothing was written (choose another name, or remove it)")


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut, where the file system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # some file systems do not open folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC_HERE:
            raise
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


def _hidden(path: Path) -> Path:
    # Made by `open` and `mkdir` under this name, so with the rights that the user's umask gives to any file.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in reversed(folders):
            folder.rmdir()


# -- space ------------------------------------------------------------------------------------------------------------

_GO_ON = "free some and run the same command again: what is finished is kept"


def check_space(path: Path, needed: int, what: str) -> None:
    """See that `needed` bytes fit on the disk that `path` lies on, or will lie on.

    Args:
        what: begins the sentence: `"a checkpoint needs"`.

    Raises:
        DiskFullError: with what is needed and what is free.
    """
    free = _free(path)
    if free < needed:
        raise DiskFullError(
            f"{what} {bytes_in_words(needed)}, but the disk of {path} has {bytes_in_words(free)} free; {_GO_ON}"
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that of a full disk (TensorStore says so in its text alone)."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        text = str(error)
        if full or isinstance(error, DiskFullError) or "No space left on device" in text or "Disk quota" in text:
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


def free_in_words(path: Path) -> str:
    """What is free on the disk of `path`: `"1.5 kB free"`."""
    return f"{bytes_in_words(_free(path))} free"


def _free(path: Path) -> int:
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())
    return shutil.disk_usage(existing).free


def write_error(path: Path, error: Exception) -> WriteError:
    """The error that tells of one of the system's, met while writing `path`."""
    if is_disk_full(error):
        return DiskFullError(f"no space left on the disk while writing {path} ({free_in_words(path)}); {_GO_ON}")
    return WriteError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}")


# -- locks ------------------------------------------------------------------------------------------------------------

_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """The exclusive lock of the one who writes into a folder, held by one `Lock` object at a time.

    It is `flock` on a small file in the folder, so the kernel gives it back when its process dies, also under
    `kill -9`; the note inside (process, host, time) is only for the message and never decides anything. The file stays
    where it is: to delete it would let two processes hold locks on two files of one name.
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
            LockedError: if someone else has it, naming process and host.
            WriteError: if the folder for the lock is missing.
        """
        folder = self.path.parent
        if self._handle is not None:
            raise LockedError(f"{folder} is already locked by this very process ({os.getpid()})")
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, NotADirectoryError):
            raise WriteError(f"{folder} is not a folder, so it cannot be locked") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.pread(handle, 4096, 0))
            os.close(handle)
            raise LockedError(f"{folder} is being written by {holder}; wait or stop it") from None
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _held.add(self)
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # a full disk has no room for the note; the lock holds without it
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(note).encode(), 0)
        return self

    def check(self) -> None:
        """See that the file that is held is still the one at its path.

        Raises:
            LostError: if it or its folder was removed, renamed or replaced: what is written there now would be beside
                what was written before, or in what belongs to somebody else.
        """
        if self._handle is not None and not still_named(self._handle, self.path):
            folder = self.path.parent
            raise LostError(
                f"{folder} was removed, renamed or replaced (or {self.path.name} in it) while this process was writing "
                "into it, so it stops here; nothing more is saved, and what was saved is where the folder is now"
            )

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _held.discard(self)
            os.close(handle)

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def held_folder(folder: Path, *, alone: bool) -> Iterator[bool]:
    """Hold a folder that may be renamed: with others to read it, or alone to remove it.

    It changes nothing in the folder and ends with the process. Some network file systems have no such locks: there
    nothing is held.

    Yields:
        Whether it is held: False where it has gone, or somebody holds it who does not share it.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        # Between opening and locking, the folder may have been renamed, and another may have got its name.
        yield _flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH) and still_named(handle, folder)
    finally:
        os.close(handle)


def _flock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
    return True


def still_named(handle: int, path: Path) -> bool:
    """Whether an open file or folder is still what `path` names: not removed, not renamed, not replaced."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


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
