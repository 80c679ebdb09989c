"""JSON lines: an object a line, a field of which is a document."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import IO

from xlstm_jax.data.errors import SourceError, reason
from xlstm_jax.data.prepare.encoding import UTF8_BOM
from xlstm_jax.data.prepare.formats.base import Format, Reading, Where, text_of

MOST_RECOGNISED = 1 << 24
"""Bytes of a first line or record that are read to recognise a format."""


def _read(
    stream: IO[bytes], config: Reading, start: int, end: int | None, where: Where
) -> Iterator[bytes | SourceError]:
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
            line = line.removeprefix(UTF8_BOM)
        if line.strip():
            try:
                yield _text_of(line, config.text_field, functools.partial(where, begin))
            except SourceError as error:
                if begin == 0 and line.startswith(b"["):
                    raise SourceError(f"{error}; a file that is one JSON array is read with --format json") from error
                yield error


def _text_of(line: bytes, field: str, place: Callable[[], str]) -> bytes:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place()} is not JSON: {reason(error)}") from error
    return text_of(record, field, place)


def _recognise(stream: IO[bytes], config: Reading) -> bool:
    """Datasets ship JSON lines as `.json.gz` too: an object that ends on its first line tells."""
    return is_line(stream.readline(MOST_RECOGNISED).removeprefix(UTF8_BOM))


def is_line(first: bytes) -> bool:
    """Whether the first line of a file is an object that is followed by others."""
    try:
        return isinstance(json.loads(first), dict) and first.endswith(b"\n")
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
    options=("text_field", "skip_invalid"),
    utf8=True,
)
