"""Plain text, and every file that no other format claims: one document, or several with a separator between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from xlstm_jax.data.prepare.encoding import UTF8_BOM
from xlstm_jax.data.prepare.formats.base import Format, Reading, Where
from xlstm_jax.data.tokenizers import as_bytes


def _read(stream: IO[bytes], config: Reading, start: int, end: int | None, where: Where) -> Iterator[bytes]:
    content = stream.read().removeprefix(UTF8_BOM)
    yield from content.split(as_bytes(config.separator)) if config.separator else [content]


FORMAT = Format(
    name="text",
    summary="all other files: one document each, or several with a separator between them",
    read=_read,
    options=("separator",),
    utf8=True,
)
