"""One JSON array of objects, or objects one after another over any lines; a field of each is a document."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from typing import IO, Any

from xlstm_jax.data.errors import SourceError, reason
from xlstm_jax.data.prepare.encoding import UTF8_BOM
from xlstm_jax.data.prepare.formats.base import Format, Reading, Where, text_of
from xlstm_jax.data.prepare.formats.jsonl import MOST_RECOGNISED, is_line

BLOCK = 1 << 18
MOST_CHARACTERS = 1 << 27
"""Of one record: what is longer is not an object that lacks its end, but a mistake before it."""

_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder()


class _Values:
    """The values in a stream, one at a time, so that a file of any size needs the memory of its largest record."""

    def __init__(self, stream: IO[bytes], where: Where):
        self._stream, self._where = stream, where
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogatepass")
        self._text, self._at, self._began, self._passed = "", 0, 0, 0
        self._count, self._ended = 0, False

    def sign(self) -> str:
        """The next character that is no space, which stays; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more(BLOCK):
                return self._text[self._at : self._at + 1]

    def take(self) -> None:
        """Go past the character that `sign` shows."""
        self._at += 1

    def expect(self, sign: str) -> None:
        """Go past that character, or see that the file ends here if it is empty."""
        if (found := self.sign()) != sign:
            wanted = f"a {sign!r}" if sign else "the end of the file"
            self._began = self._at
            raise SourceError(
                f"{self.place()} is not JSON: {f'a {found!r}' if found else 'its end'} stands where {wanted} should"
            )
        self._at += len(sign)

    def value(self) -> Any:
        """The value that begins here."""
        self._count += 1
        self._began = self._at
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
                return value
            except json.JSONDecodeError as error:
                left = len(self._text) - self._at
                # Twice as much each time: what is tried again in vain is as much as what is read in the end.
                if left > MOST_CHARACTERS or not self._more(max(BLOCK, left)):
                    self._began = error.pos
                    raise SourceError(f"{self.place()} is not JSON: {reason(error)}") from error
            except RecursionError as error:
                raise SourceError(f"{self.place()} is not JSON: {reason(error)}") from error

    def place(self) -> str:
        """Where the last value began."""
        return f"{self._where(self._passed + _size(self._text[: self._began]))}, record {self._count}"

    def _more(self, size: int) -> bool:
        """Read on; False at the end."""
        if self._ended:
            return False
        block = self._stream.read(size)
        self._passed += _size(self._text[: self._at])
        self._ended = not block
        try:
            self._text = self._text[self._at :] + self._decoder.decode(block, self._ended)
        except UnicodeDecodeError as error:
            raise SourceError(f"{self._where(self._passed)} is not JSON: {reason(error)}") from error
        self._at = self._began = 0
        return True


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _read(
    stream: IO[bytes], config: Reading, start: int, end: int | None, where: Where
) -> Iterator[bytes | SourceError]:
    values = _Values(stream, where)
    closing = ""
    if values.sign() == "[":
        values.take()
        closing = "]"
    while values.sign() != closing:
        record = values.value()
        try:
            yield text_of(record, config.text_field, values.place)
        except SourceError as error:
            yield error
        if closing and values.sign() != closing:
            values.expect(",")
    if closing:
        values.expect(closing)
        values.expect("")


def _recognise(stream: IO[bytes], config: Reading) -> bool:
    """An array, or an object that has the field; other objects (settings, mostly) are a text like any."""
    head = stream.read(MOST_RECOGNISED)
    if is_line(io.BytesIO(head.removeprefix(UTF8_BOM)).readline()):
        return False
    text = codecs.getincrementaldecoder("utf-8-sig")("replace").decode(head).lstrip(_SPACE)
    try:
        return text.startswith("[") or config.text_field in _DECODER.raw_decode(text)[0]
    except (ValueError, RecursionError, TypeError):
        return False


FORMAT = Format(
    name="json",
    summary="JSON: an array of objects, or objects over several lines; one of their fields is a document",
    read=_read,
    shared_endings=(".json",),
    recognise=_recognise,
    options=("text_field", "skip_invalid"),
    utf8=True,
)
