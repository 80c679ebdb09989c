"""What a format of text files has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Protocol


class Reading(Protocol):
    """What of a `PrepareConfig` the formats look at."""

    text_field: str
    separator: str | None


Where = Callable[[int], str]
Read = Callable[[IO[bytes], Reading, int, int | None, Where], Iterator[bytes]]


@dataclass(frozen=True)
class Format:
    """How the documents of a file are found."""

    name: str
    summary: str
    """For the help of the command."""
    read: Read
    """`read(stream, config, start, end, where)`: the documents of an open file (unpacked if it is gzipped) that begin
    in the bytes [start, end), in order; `where(byte)` says `path, line n` for a `SourceError`."""
    endings: tuple[str, ...] = ()
    """Of file names, with their dot, in lower case."""
    shared_endings: tuple[str, ...] = ()
    """Endings of other files too: `recognise` tells."""
    recognise: Callable[[bytes], bool] = lambda first_line: False
    """Whether a file with a shared ending is of this format, by its first line."""
    can_cut: bool = False
    """Whether `read` can start in the middle of a file that is not gzipped; if not, start is 0 and end None."""
    options: tuple[str, ...] = ()
    """The fields of `PrepareConfig` that it looks at."""
