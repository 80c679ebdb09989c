"""A keyed permutation of 0..n-1 that needs no table: a Feistel network with cycle walking."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Int64

ROUNDS = 6


def permute(index: Int64[np.ndarray, " rows"], size: int, *key: int) -> Int64[np.ndarray, " rows"]:
    """Where the permutation of `range(size)` with this key sends each index.

    A Feistel network permutes the smallest range of 4**k numbers that holds `range(size)`, whatever its round function;
    applying it again to a result at or above `size` until it falls below ("cycle walking") makes it a permutation of
    `range(size)` itself. As 4**k < 4 * size, that takes four rounds of it on average.

    Args:
        index: numbers in `range(size)`.
        size: any number from 1 to 2**62.
        key: whole numbers (seed, source, epoch, ...); each tuple is another permutation.
    """
    if not 1 <= size <= 1 << 62:
        raise ValueError(f"a permutation needs a size from 1 to 2**62, but got {size}")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = _round_keys(key)
    out = np.array(index, np.uint64)
    walking = np.arange(out.size)
    while walking.size:
        out[walking] = _feistel(out[walking], half, keys)
        walking = walking[out[walking] >= size]
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    low = np.uint64((1 << int(half)) - 1)
    left, right = x >> half, x & low
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & low)
    return (left << half) | right


def _mix(x: np.ndarray) -> np.ndarray:
    # The finaliser of splitmix64: every bit of the input reaches every bit of the result. Products wrap on purpose.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    digest = hashlib.blake2b(repr(tuple(int(k) for k in key)).encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, "<u8")
