"""The few sizes that long inputs are cut into, so that few programs are compiled: for scoring and for prefill."""

from __future__ import annotations

PIECE = 256
"""Tokens of a text that are read at once, at most."""
SHORTEST_PIECE = 16


def power_of_two(count: int) -> int:
    """The least power of two that is not below `count`, 1 at least."""
    return 1 << max(count - 1, 0).bit_length()


def pieces(length: int) -> list[int]:
    """Sizes whose sum is at least `length`: whole pieces, then one that is a power of two."""
    whole, rest = divmod(length, PIECE)
    last = [max(SHORTEST_PIECE, power_of_two(rest))] if rest else []
    return [PIECE] * whole + last
