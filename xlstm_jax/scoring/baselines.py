"""What models must beat, on the same held-out files: a unigram model of bytes, gzip and xz."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int64

from xlstm_jax.data.store import Split

BLOCK_TOKENS = 1 << 22


def byte_counts(split: Split) -> Int64[np.ndarray, " bytes"]:
    """How often each byte occurs in the documents of a split; counted by tokens, which is faster than decoding."""
    if split.tokenizer is None:
        raise ValueError(f"the split {split.name} has no tokenizer to turn tokens into bytes")
    occurrences = np.zeros(split.tokenizer.vocab_size, np.int64)
    for start in range(0, split.num_tokens, BLOCK_TOKENS):
        occurrences += np.bincount(split.tokens[start : start + BLOCK_TOKENS], minlength=len(occurrences))
    counts = np.zeros(256, np.int64)
    for token in np.flatnonzero(occurrences):
        spelled = np.frombuffer(split.tokenizer.token_bytes(int(token)), np.uint8)
        np.add.at(counts, spelled, occurrences[token])
    return counts


def unigram_bits_per_byte(training: Int64[np.ndarray, " bytes"], held_out: Int64[np.ndarray, " bytes"]) -> float:
    """Bits per byte of held-out bytes under the byte frequencies of the training text.

    Every byte is counted once more than it was seen (Laplace), so that none is impossible. The end of a document is
    not charged for, unlike in a model's bits per byte.
    """
    probabilities = (training + 1) / (training.sum() + 256)
    total = held_out.sum()
    return float(-(held_out * np.log2(probabilities)).sum() / total) if total else float("nan")


def gzip_size(document: bytes) -> int:
    """Bytes of `gzip -9` of one file."""
    return len(gzip.compress(document, compresslevel=9, mtime=0))


def xz_size(document: bytes) -> int:
    """Bytes of `xz -9` of one file.

    The dictionary is cut to the file's size: the output is as long, without 674 MiB of memory a file.
    """
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": min(max(len(document), 4096), 64 << 20)}]
    return len(lzma.compress(document, format=lzma.FORMAT_XZ, filters=filters))


def compressed_bits_per_byte(documents: Iterable[bytes], size: Callable[[bytes], int]) -> float:
    """Sum of the compressed sizes of single files over the sum of their sizes, in bits per byte.

    Args:
        size: compressed size of one, as `gzip_size` or `xz_size`.
    """

    def both(document: bytes) -> tuple[int, int]:
        return size(document), len(document)

    # Both libraries let go of the interpreter while they work.
    with ThreadPoolExecutor() as pool:
        sizes = np.array(list(pool.map(both, documents)), np.int64).reshape(-1, 2).sum(0)
    return float(8 * sizes[0] / sizes[1]) if sizes[1] else float("nan")
