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
from xlstm_jax.data.prepare.encoding import HEAD_BYTES, is_binary, is_utf8, wide_encoding
from xlstm_jax.data.prepare.formats import formats
from xlstm_jax.data.prepare.notes import Notes
from xlstm_jax.data.prepare.walk import matches, walk

STDLIB = "stdlib"
TEXT = "text"
_WIKITEXT = "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip, unzipped"
STANDARD_TEXTS = {
    "tinyshakespeare.txt": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "enwik8": "http://mattmahoney.net/dc/enwik8.zip, unzipped",
    "text8": "http://mattmahoney.net/dc/text8.zip, unzipped",
    "wiki.train.tokens": _WIKITEXT,
    "wiki.valid.tokens": _WIKITEXT,
}
"""Texts that models are compared on, by the names of their files, and where each is to be had."""
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
    named: bool = False
    """Whether the user named this very file, rather than a folder or a pattern that it belongs to."""
    held_out: bool = False
    """Whether all of it is for the validation split."""

    @property
    def can_cut(self) -> bool:
        """Whether `documents` can start in the middle of this file."""
        return formats()[self.format].can_cut and not self.gzip


def list_files(sources: Sequence[str | Path], config: PrepareConfig, notes: Notes | None = None) -> list[SourceFile]:
    """The files behind `sources` and those held out (`config.validation`), each once, sorted by path.

    A source is a file, a folder (all files in it and below, without hidden ones and `__pycache__`), a glob pattern
    (`**` goes down folders), or the word `stdlib`: the sources of the running interpreter's standard library.

    Args:
        notes: counts what is left out.

    Raises:
        SourceError: for a source that does not exist, matches nothing or is in a format that is not read here.
    """
    notes = notes or Notes()
    files: dict[str, SourceFile] = {}
    for listed, held_out in ((sources, False), (config.validation, True)):
        # What is held out by its name is not learnt from, whatever else names it.
        files |= {os.path.realpath(f.path): f for f in _listed(listed, config, notes, held_out)}
    if all(file.held_out for file in files.values()):
        raise SourceError("no file is left to learn from: all of them are held out by name")
    return [files[real] for real in sorted(files)]


def _listed(sources: Sequence[str | Path], config: PrepareConfig, notes: Notes, held_out: bool) -> Iterator[SourceFile]:
    if not sources and not held_out:
        raise SourceError("no source given; name files, folders, globs or the word 'stdlib'")
    paths: dict[str, tuple[str, bool]] = {}
    for source in map(str, sources):
        named = os.path.isfile(source)
        for path in _expand(source, config, notes):
            real = os.path.realpath(path)
            paths[real] = (path, named) if named else paths.get(real, (path, False))
    for real in sorted(paths):
        path, named = paths[real]
        yield _describe(path, config, named=named, held_out=held_out)


def _expand(source: str, config: PrepareConfig, notes: Notes) -> list[str]:
    if source == STDLIB:
        return _standard_library()
    if os.path.isdir(source):
        found = _files([path for path in walk(source) if _included(path, config.include)], notes)
        if not found:
            suffix = f" that match {', '.join(config.include)}" if config.include else ""
            raise SourceError(f"the folder {source} holds no files{suffix}")
        return found
    if os.path.isfile(source):
        return [source]
    if os.path.exists(source):
        # It is read more than once, which a pipe or a device cannot be.
        raise SourceError(f"{source} is neither a file nor a folder; write what it gives to a file first")
    if os.path.islink(source):
        raise SourceError(f"{source} is a link to {os.readlink(source)}, which leads to no file")
    if glob.has_magic(source):
        found = _files(matches(source), notes)
        if not found:
            raise SourceError(f"no file matches {source!r}")
        return found
    folder = os.path.dirname(source) or "."
    siblings = os.listdir(folder) if os.path.isdir(folder) else []
    hint = near_miss(os.path.basename(source), siblings)
    if (where := STANDARD_TEXTS.get(os.path.basename(source))) is not None:
        raise SourceError(
            f"there is no file {source!r}{hint}: it comes from {where}; if it lies elsewhere, give its path (to a "
            "preset by --sources or --data.validation)"
        )
    raise SourceError(
        f"there is no file or folder {source!r}{hint}; the word 'stdlib' means the Python library's sources"
    )


def _files(paths: list[str], notes: Notes) -> list[str]:
    """Those of the paths that are files, or links to files."""
    for path in paths:
        if not os.path.isfile(path):
            notes.add("no file", path)
    return [path for path in paths if os.path.isfile(path)]


def _included(path: str, patterns: tuple[str, ...] | None) -> bool:
    return patterns is None or any(fnmatch(os.path.basename(path), pattern) for pattern in patterns)


def _standard_library() -> list[str]:
    root = sysconfig.get_path("stdlib")
    found = []
    for path in filter(os.path.isfile, walk(root)):
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


def _describe(path: str, config: PrepareConfig, *, named: bool, held_out: bool) -> SourceFile:
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
        name = config.format if config.format != AUTO else _guess_format(path, extension, packed, config)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    return SourceFile(path, name, packed, state.st_size, state.st_mtime_ns, named, held_out)


def _guess_format(path: str, extension: str, packed: bool, config: PrepareConfig) -> str:
    for one in formats().values():
        if extension in one.endings:
            return one.name
        if extension in one.shared_endings:
            with _open(path, packed) as file, _reading_errors(path):
                if one.recognise(file, config):
                    return one.name
    return "text"


# -- documents ---------------------------------------------------------------------------------------------------------


def documents(
    file: SourceFile, config: PrepareConfig, start: int = 0, end: int | None = None, notes: Notes | None = None
) -> Iterator[bytes]:
    """The documents of a file that are not empty, in order; if it can be cut, those that begin in [start, end).

    A file of a folder or pattern that is no text is left out, as are the records that `config.skip_invalid` lets pass.

    Args:
        notes: counts what is left out.

    Raises:
        SourceError: for a file that cannot be read, a broken gzip stream, or content that is not of its format; the
            message names the file, and the line where there are lines.
    """
    notes = notes or Notes()
    form = formats()[file.format]
    with _reading_errors(file.path), _open(file.path, file.gzip) as stream:
        judged = form.utf8 and not form.name == TEXT == config.format
        text = _judged(file, stream, notes) if judged else stream
        if text is None:
            return
        for found in form.read(text, config, start, end, functools.partial(_place, file)):
            if not isinstance(found, SourceError):
                if found:
                    yield found
            elif config.skip_invalid:
                notes.add("invalid", str(found))
            else:
                raise SourceError(f"{found} (skip_invalid, --skip-invalid, leaves such records out)") from found


def _judged(file: SourceFile, stream: IO[bytes], notes: Notes) -> IO[bytes] | None:
    """The stream of a file that should be text; None, and a note, if it is none and was not named."""
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if wide := wide_encoding(head):
        if file.named or file.format != TEXT:
            convert = f"`iconv -f {wide} -t UTF-8` converts it"
            raise SourceError(f"{file.path} is text in {wide}, but must be in UTF-8; {convert}")
        notes.add("wide", file.path)
        return None
    if file.format != TEXT:
        return stream
    content = stream.read()
    if is_binary(content):
        if file.named:
            raise SourceError(f"{file.path} is not text; --format text takes its bytes as they are")
        notes.add("binary", file.path)
        return None
    if not is_utf8(content):
        notes.add("other encoding", file.path)
    return io.BytesIO(content)


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
        if (left := _after_gzip(path)) is not None:
            raise SourceError(
                f"{path} has {left} bytes after the end of its gzip stream that are not gzip; "
                f"`zcat {path} | gzip > NEW` writes it without them"
            ) from error
        raise SourceError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error


def _after_gzip(path: str) -> int | None:
    """How many bytes that are no gzip follow the whole gzip streams that a file begins with; None if none do."""
    unpack, at_border, block = zlib.decompressobj(31), False, b""
    with open(path, "rb") as file, contextlib.suppress(zlib.error):
        while block or (block := file.read(1 << 16)):
            if at_border and (block := block.lstrip(b"\0")) and not block.startswith(b"\x1f\x8b"):
                return len(block) + os.fstat(file.fileno()).st_size - file.tell()
            if block:
                unpack.decompress(block)
                block, at_border = unpack.unused_data, unpack.eof
                unpack = zlib.decompressobj(31) if at_border else unpack
    return None
