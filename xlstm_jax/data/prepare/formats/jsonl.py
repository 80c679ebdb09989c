"""JSON lines: an object a line, a field of which is a document."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import IO

from xlstm_jax.config import near_miss
from xlstm_jax.data.errors import SourceError, reason
from xlstm_jax.data.prepare.formats.base import Format, Reading, Where
from xlstm_jax.data.tokenizers import as_bytes


def _read(stream: IO[bytes], config: Reading, start: int, end: int | None, where: Where) -> Iterator[bytes]:
    position = 0
    if start:
        # A line belongs to the stretch that holds its first byte; the byte before tells whether one begins there.
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
            yield _text_of(line, config.text_field, functools.partial(where, begin))


def _text_of(line: bytes, field: str, place: Callable[[], str]) -> bytes:
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


def _recognise(first_line: bytes) -> bool:
    """Datasets ship JSON lines as `.json.gz` too: an object that ends on its first line tells."""
    try:
        return isinstance(json.loads(first_line), dict) and first_line.endswith(b"\n")
    except (ValueError, RecursionError):
        return False


FORMAT = Format(
    name="jsonl",
    summary="JSON lines: an object a line, one of its fields is a document",
    read=_read,
    endings=(".jsonl", ".ndjson"),
    shared_endings=(".json",),
    recognise=_recognise,
    can_cut=True,
    options=("text_field",),
)
