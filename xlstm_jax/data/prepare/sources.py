"""From what the user names (files, folders, globs, `stdlib`) to files, and from files to documents.

A document is bytes. A text file is one document, or several if a separator is given; so is a line of a JSON-lines file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import gzip
import io
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Literal

from xlstm_jax.config import near_miss
from xlstm_jax.data.errors import SourceError, reason
from xlstm_jax.data.tokenizers.base import as_bytes

Format = Literal["auto", "text", "jsonl"]

STDLIB = "stdlib"
_JSON_LINES = (".jsonl", ".ndjson")
_OTHER_FORMATS = {
    ".zst": "Zstandard", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip", ".7z": "7-Zip", ".tar": "tar", ".tgz": "tar",
    ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read: where it is, how to read it, and its state when it was listed."""

    path: str
    format: str
    gzip: bool
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Reading:
    """How files become documents.

    Attributes:
        format: of all files; `auto` goes by the name (`.jsonl`, `.ndjson`, and `.json` that holds an object a line).
        text_field: the field of a JSON line that holds its text.
        separator: text that stands between the documents of a text file, and belongs to none; None: a file is one.
        include: name patterns that the files found in folders must match one of; None: all.
    """

    format: Format = "auto"
    text_field: str = "text"
    separator: str | None = None
    include: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.format not in ("auto", "text", "jsonl"):
            raise SourceError(f"format is {self.format!r}, but must be 'auto', 'text' or 'jsonl'")
        if self.separator == "":
            raise SourceError("the separator is empty, but must be the text that stands between documents")


def list_files(sources: Sequence[str | Path], reading: Reading) -> list[SourceFile]:
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
        for path in _expand(str(source), reading):
            paths.setdefault(os.path.realpath(path), path)
    return [_describe(paths[real], reading) for real in sorted(paths)]


def _expand(source: str, reading: Reading) -> list[str]:
    if source == STDLIB:
        return _standard_library()
    if os.path.isdir(source):
        found = [p for p in _walk(source) if _included(p, reading.include)]
        if not found:
            suffix = f" that match {', '.join(reading.include)}" if reading.include else ""
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


def _describe(path: str, reading: Reading) -> SourceFile:
    path = os.path.abspath(path)
    stem, extension = os.path.splitext(path)
    packed = extension.lower() == ".gz"
    if packed:
        extension = os.path.splitext(stem)[1]
    if (other := _OTHER_FORMATS.get(extension.lower())) is not None:
        raise SourceError(
            f"{path} is a {other} file; unpack it or write it as text or JSON lines (gzip is read as it is)"
        )
    try:
        state = os.stat(path)
        kind = reading.format if reading.format != "auto" else _guess_format(path, extension.lower(), packed)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    return SourceFile(path, kind, packed, state.st_size, state.st_mtime_ns)


def _guess_format(path: str, extension: str, packed: bool) -> str:
    if extension in _JSON_LINES:
        return "jsonl"
    if extension != ".json":
        return "text"
    # Datasets ship JSON lines as `.json.gz` too: an object that ends on its first line tells.
    with _open(path, packed) as file, _reading_errors(path):
        first = file.readline(1 << 24)
    try:
        return "jsonl" if isinstance(json.loads(first), dict) and first.endswith(b"\n") else "text"
    except (ValueError, RecursionError):
        return "text"


# ---------------------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------------------


def can_cut(file: SourceFile) -> bool:
    """Whether `documents` can start in the middle of this file."""
    return file.format == "jsonl" and not file.gzip


def documents(file: SourceFile, reading: Reading, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The documents of a file that are not empty, in order; if it can be cut, those that begin in [start, end).

    Raises:
        SourceError: for a file that cannot be read, a broken gzip stream, a line that is not a JSON object or has no
            such text field; the message names file and line.
    """
    with _reading_errors(file.path), _open(file.path, file.gzip) as stream:
        if file.format == "jsonl":
            yield from _json_lines(file, stream, reading.text_field, start, end)
            return
        content = stream.read()
        pieces = content.split(as_bytes(reading.separator)) if reading.separator else [content]
        yield from (piece for piece in pieces if piece)


def _json_lines(file: SourceFile, stream: IO[bytes], field: str, start: int, end: int | None) -> Iterator[bytes]:
    position = 0
    if start:
        # A line belongs to the piece that holds its first byte; the byte before `start` tells whether one begins there.
        stream.seek(start - 1)
        position = start - 1 + len(stream.readline())
    while end is None or position < end:
        line = stream.readline()
        if not line:
            return
        begin, position = position, position + len(line)
        if begin == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            text = _text_of(line, field, lambda at=begin: _place(file, at))
            if text:
                yield text


def _text_of(line: bytes, field: str, place) -> bytes:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place()} is not JSON: {reason(error)}") from error
    if not isinstance(record, dict):
        raise SourceError(f"{place()} holds a {type(record).__name__}, but must hold an object with a field {field!r}")
    if field not in record:
        fields = ", ".join(map(repr, list(record)[:10])) or "none"
        raise SourceError(
            f"{place()} has no field {field!r}{near_miss(field, record)}; its fields are {fields} "
            "(choose with text_field, --text-field)"
        )
    text = record[field]
    if not isinstance(text, str):
        raise SourceError(
            f"{place()}: field {field!r} is {type(text).__name__} {str(text)[:40]!r}, but must be a string"
        )
    return as_bytes(text)


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
