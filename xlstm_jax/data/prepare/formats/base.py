"""What a format of text files has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol

from xlstm_jax.config import near_miss
from xlstm_jax.data.errors import SourceError
from xlstm_jax.data.tokenizers import as_bytes


class Reading(Protocol):
    """What of a `PrepareConfig` the formats look at."""

    text_field: str
    separator: str | None


Where = Callable[[int], str]
Read = Callable[[IO[bytes], Reading, int, int | None, Where], Iterator[bytes | SourceError]]


@dataclass(frozen=True)
class Format:
    """How the documents of a file are found."""

    name: str
    summary: str
    """For the help of the command."""
    read: Read
    """`read(stream, config, start, end, where)`: the documents of an open file (unpacked if it is gzipped) that begin
    in the bytes [start, end), in order; `where(byte)` says `path, line n` for a `SourceError`. An error that is given
    instead of a document tells of a record that may be left out; one that is raised ends the reading."""
    endings: tuple[str, ...] = ()
    """Of file names, with their dot, in lower case."""
    shared_endings: tuple[str, ...] = ()
    """Endings of other files too: `recognise` tells."""
    recognise: Callable[[IO[bytes], Reading], bool] = lambda stream, config: False
    """Whether an open file with a shared ending is of this format."""
    can_cut: bool = False
    """Whether `read` can start in the middle of a file that is not gzipped; if not, start is 0 and end None."""
    options: tuple[str, ...] = ()
    """The fields of `PrepareConfig` that it looks at."""
    utf8: bool = False
    """Whether files in UTF-16 or UTF-32 are none of its own."""


def text_of(record: Any, field: str, place: Callable[[], str]) -> bytes:
    """The text in a field of a record.

    Raises:
        SourceError: for what is no object, or has no text in that field; `place()` begins the sentence.
    """
    if not isinstance(record, dict):
        kind = {"int": "an int", "NoneType": "null"}.get(type(record).__name__, f"a {type(record).__name__}")
        raise SourceError(f"{place()} holds {kind}, but must hold an object with a field {field!r}")
    if field not in record:
        fields = ", ".join(map(repr, list(record)[:10])) or "none"
        raise SourceError(
            f"{place()} has no field {field!r}{near_miss(field, record)}; its fields are {fields} "
            "(choose with text_field, --text-field)"
        )
    text = record[field]
    if not isinstance(text, str):
        found = "null" if text is None else f"{type(text).__name__} {str(text)[:40]!r}"
        raise SourceError(f"{place()}: field {field!r} is {found}, but must be a string")
    return as_bytes(text)
