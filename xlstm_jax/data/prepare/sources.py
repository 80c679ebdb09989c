"""From what the user names (files, folders, globs, `stdlib`) to files, and from files to documents, which are bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import gzip
import io
import os
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from xlstm_jax.config import near_miss
from xlstm_jax.data.errors import SourceError
from xlstm_jax.data.prepare.config import AUTO, PrepareConfig
from xlstm_jax.data.prepare.formats import formats

STDLIB = "stdlib"
_NOT_READ = {
    ".zst": "Zstandard", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip", ".7z": "7-Zip", ".tar": "tar", ".tgz": "tar",
    ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read, and its state when it was listed."""

    path: str
    format: str
    gzip: bool
    size: int
    mtime_ns: int

    @property
    def can_cut(self) -> bool:
        """Whether `documents` can start in the middle of this file."""
        return formats()[self.format].can_cut and not self.gzip


def list_files(sources: Sequence[str | Path], config: PrepareConfig) -> list[SourceFile]:
    """The files behind `sources`, each once, sorted by path.

    A source is a file, a folder (all files in it and below, without hidden ones and `__pycache__`), a glob pattern
    (`**` goes down folders), or the word `stdlib`: the sources of the running interpreter's standard library.

    Raises:
        SourceError: for a source that does not exist, matches nothing or is in a format that is not read here.
    """
    if not sources:
        raise SourceError("no source given; name files, folders, globs or the word 'stdlib'")
    paths: dict[str, str] = {}
    for source in sources:
        for path in _expand(str(source), config):
            paths.setdefault(os.path.realpath(path), path)
    return [_describe(paths[real], config) for real in sorted(paths)]


def _expand(source: str, config: PrepareConfig) -> list[str]:
    if source == STDLIB:
        return _standard_library()
    if os.path.isdir(source):
        found = [p for p in _walk(source) if _included(p, config.include)]
        if not found:
            suffix = f" that match {', '.join(config.include)}" if config.include else ""
            raise SourceError(f"the folder {source} holds no files{suffix}")
        return found
    if os.path.isfile(source):
        return [source]
    if os.path.exists(source):
        # It is read more than once, which a pipe or a device cannot be.
        raise SourceError(f"{source} is neither a file nor a folder; write what it gives to a file first")
    if glob.has_magic(source):
        matches = glob.glob(source, recursive=True)
        found = [f for m in matches for f in ([m] if os.path.isfile(m) else [])]
        if not found:
            raise SourceError(f"no file matches {source!r}")
        return found
    folder = os.path.dirname(source) or "."
    siblings = os.listdir(folder) if os.path.isdir(folder) else []
    hint = near_miss(os.path.basename(source), siblings)
    raise SourceError(
        f"there is no file or folder {source!r}{hint}; the word 'stdlib' means the Python library's sources"
    )


def _walk(folder: str) -> list[str]:
    found = []
    for base, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__pycache__"]
        found += [os.path.join(base, n) for n in names if not n.startswith(".")]
    return [path for path in found if os.path.isfile(path)]


def _raise(error: OSError) -> None:
    raise SourceError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _included(path: str, patterns: tuple[str, ...] | None) -> bool:
    return patterns is None or any(fnmatch(os.path.basename(path), pattern) for pattern in patterns)


def _standard_library() -> list[str]:
    root = sysconfig.get_path("stdlib")
    found = []
    for path in _walk(root):
        parts = Path(path).relative_to(root).parts
        tests = {"test", "tests", "idle_test"} & set(parts)
        # `_sysconfigdata*` and `config-*` are written when Python is built: settings of one machine, not sources.
        built = parts[0].startswith(("_sysconfigdata", "config-"))
        packages = {"site-packages", "dist-packages"} & set(parts)
        if path.endswith(".py") and not (tests or built or packages):
            found.append(path)
    if not found:
        raise SourceError(f"this Python has no library sources in {root}; name other files")
    return found


def _describe(path: str, config: PrepareConfig) -> SourceFile:
    path = os.path.abspath(path)
    stem, extension = os.path.splitext(path)
    packed = extension.lower() == ".gz"
    if packed:
        extension = os.path.splitext(stem)[1]
    extension = extension.lower()
    if extension in _NOT_READ and not any(extension in one.endings for one in formats().values()):
        raise SourceError(
            f"{path} is a {_NOT_READ[extension]} file; unpack it or write it as text or JSON lines "
            "(gzip is read as it is)"
        )
    try:
        state = os.stat(path)
        name = config.format if config.format != AUTO else _guess_format(path, extension, packed)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    return SourceFile(path, name, packed, state.st_size, state.st_mtime_ns)


def _guess_format(path: str, extension: str, packed: bool) -> str:
    for one in formats().values():
        if extension in one.endings:
            return one.name
        if extension in one.shared_endings:
            with _open(path, packed) as file, _reading_errors(path):
                if one.recognise(file.readline(1 << 24)):
                    return one.name
    return "text"


# -- documents ---------------------------------------------------------------------------------------------------------


def documents(file: SourceFile, config: PrepareConfig, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The documents of a file that are not empty, in order; if it can be cut, those that begin in [start, end).

    Raises:
        SourceError: for a file that cannot be read, a broken gzip stream, or content that is not of its format; the
            message names the file, and the line where there are lines.
    """
    read = formats()[file.format].read
    with _reading_errors(file.path), _open(file.path, file.gzip) as stream:
        yield from filter(None, read(stream, config, start, end, functools.partial(_place, file)))


def _place(file: SourceFile, position: int) -> str:
    """`path, line n` of a byte position; counts lines only now that there is something to report."""
    line, left = 1, position
    with _open(file.path, file.gzip) as stream:
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            line, left = line + block.count(b"\n"), left - len(block)
    return f"{file.path}, line {line}"


def _open(path: str, packed: bool) -> IO[bytes]:
    return io.BufferedReader(gzip.GzipFile(path, "rb"), 1 << 18) if packed else open(path, "rb", 1 << 18)


@contextlib.contextmanager
def _reading_errors(path: str) -> Iterator[None]:
    """Turns what reading a file can raise into `SourceError`s that name it."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
