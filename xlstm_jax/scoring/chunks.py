"""The few sizes that long inputs are read in, so that few programs are compiled: for scoring and for prefill."""

from __future__ import annotations

LONGEST_CHUNK = 256
"""Tokens of a text that are read at once, at most."""
SHORTEST_CHUNK = 16
SMALLEST_ROOM = 64
"""Tokens a row that a state has room for at least, where it has to be made as large as the text will be."""


def power_of_two(count: int) -> int:
    """The least power of two that is not below `count`, 1 at least."""
    return 1 << max(count - 1, 0).bit_length()


def chunk_size(length: int) -> int:
    """The size that so many tokens are padded to."""
    return max(SHORTEST_CHUNK, power_of_two(length))


def chunks(length: int) -> list[tuple[int, int]]:
    """(start, size) of the chunks that cover `length` tokens: whole ones, then one whose size is a power of two."""
    starts = range(0, length, LONGEST_CHUNK)
    return [(start, chunk_size(min(length - start, LONGEST_CHUNK))) for start in starts]


def room(tokens: int) -> int:
    """Tokens that a growing state is made for, to hold so many."""
    return max(SMALLEST_ROOM, power_of_two(tokens))
