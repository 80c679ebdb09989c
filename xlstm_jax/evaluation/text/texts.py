"""The text that runs are scored on: documents of bytes, from files, standard input or a token store; and its counts.

What counts: a byte is one of the documents as they are; a character a code point of UTF-8, or a byte that is not part
of valid UTF-8; a word what stands between white space; a line an end of line.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.data.store import Split
from xlstm_jax.data.tokenizers import Tokenizer

STANDARD_INPUT = "-"
_WORD = re.compile(r"\S+")


class Counts(NamedTuple):
    """Of a document, or of several together."""

    bytes: int
    characters: int
    words: int
    lines: int


@dataclass(frozen=True)
class Text:
    """Documents of bytes."""

    name: str
    """For titles."""
    documents: Sequence[str]
    """The name of each."""
    read: Callable[[int], bytes]
    """A document."""
    counts: Sequence[Counts]
    fingerprint: str
    """SHA-256 over the documents."""
    stored: Split | None = None
    """The split that they are of, if they are tokens already."""

    def split(self, tokenizer: Tokenizer) -> Split:
        """The documents as tokens."""
        if self.stored is not None and self.stored.tokenizer_fingerprint == tokenizer.fingerprint:
            return self.stored
        tokens = [tokenizer.encode_array(self.read(number)) for number in range(len(self.documents))]
        split = Split.from_documents(tokens, eod_id=tokenizer.eod_id, name=self.name)
        split.tokenizer = tokenizer
        return split


def count(document: bytes) -> Counts:
    """The counts of a document."""
    text = document.decode("utf-8", "surrogateescape")
    return Counts(len(document), len(text), sum(1 for _ in _WORD.finditer(text)), document.count(b"\n"))


def total(counts: Iterable[Counts]) -> Counts:
    """The counts of several documents together."""
    sums = [0, 0, 0, 0]
    for one in counts:
        sums = [a + b for a, b in zip(sums, one, strict=True)]
    return Counts(*sums)


def text_of_files(paths: Sequence[str]) -> Text:
    """Each file a document, byte for byte; `-` is standard input.

    Raises:
        ConfigError: for a file that is not there or cannot be read.
    """
    given = {path: _standard_input() if path == STANDARD_INPUT else None for path in paths}

    def read(number: int) -> bytes:
        content = given[paths[number]]
        return _file(paths[number]) if content is None else content

    names = ["standard input" if path == STANDARD_INPUT else path for path in paths]
    title = names[0] if len(names) == 1 else f"{len(names)} files"
    return _text(title, names, read, None)


def text_of_split(split: Split, name: str) -> Text:
    """The documents of a split of a token store.

    Raises:
        ConfigError: if it has none.
    """
    if not split.num_documents:
        raise ConfigError(f"{name} has no documents; --text FILE names a text to score")
    return _text(name, [f"document {n}" for n in range(split.num_documents)], split.document_bytes, split)


def _text(name: str, documents: Sequence[str], read: Callable[[int], bytes], stored: Split | None) -> Text:
    digest: Any = hashlib.sha256()
    counts = []
    for number in range(len(documents)):
        content = read(number)
        digest.update(f"{len(content)}:".encode())
        digest.update(content)
        counts.append(count(content))
    return Text(name, documents, read, counts, digest.hexdigest(), stored)


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        folder = Path(path).parent
        hint = near_miss(Path(path).name, [p.name for p in folder.iterdir()] if folder.is_dir() else [])
        raise ConfigError(f"there is no text {path}{hint}") from None
    except IsADirectoryError:
        raise ConfigError(f"the text {path} is a folder; name the files in it, as in {Path(path) / '*'}") from None
    except OSError as error:
        raise ConfigError(f"the text {path} cannot be read: {error.strerror}") from error


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise ConfigError("--text - is standard input, but that is closed")
    if sys.stdin.isatty():
        print("reading the text (end it with Ctrl-D):", file=sys.stderr)
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ConfigError(f"the text cannot be read from standard input ({error.strerror})") from error
