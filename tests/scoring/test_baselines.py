"""The baselines are what the named programs make, and stand beside the model in one table."""

from __future__ import annotations

import gzip
import io
import lzma
import math

import pytest
from rich.console import Console

from xlstm_jax.data.store import Split
from xlstm_jax.data.tokenizers import ByteTokenizer
from xlstm_jax.report.table import Comparison, print_comparison
from xlstm_jax.scoring.baselines import (
    byte_counts,
    compressed_bits_per_byte,
    gzip_size,
    unigram_bits_per_byte,
    xz_size,
)


def byte_split(documents: list[bytes]) -> Split:
    split = Split.from_documents([list(d) for d in documents], eod_id=256)
    split.tokenizer = ByteTokenizer()
    return split


def test_unigram_counts_bytes_of_the_training_text() -> None:
    training, held_out = byte_split([b"aab", b"b"]), byte_split([b"ab", b"c"])
    counts = byte_counts(training)
    assert counts[ord("a")] == counts[ord("b")] == 2
    assert counts.sum() == 4
    want = -(2 * math.log2(3 / 260) + math.log2(1 / 260)) / 3
    assert unigram_bits_per_byte(counts, byte_counts(held_out)) == pytest.approx(want)


def test_compressed_sizes_are_those_of_the_programs() -> None:
    text = "".join(f"line {i * i} of a file\n" for i in range(3000)).encode()
    for document in (b"", b"x", text[:1000], text):
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as file:
            file.write(document)
        assert gzip_size(document) == len(buffer.getvalue())
        assert xz_size(document) == len(lzma.compress(document, preset=9))
    both = compressed_bits_per_byte([text, text[:1000]], gzip_size)
    assert both == pytest.approx(8 * (gzip_size(text) + gzip_size(text[:1000])) / (len(text) + 1000))
    assert math.isnan(compressed_bits_per_byte([], gzip_size))


def test_the_table_shows_the_four_side_by_side() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_comparison(Comparison(1.5, 4.75, 2.25, 2.0, files=3, raw_bytes=12345), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert [shown.index(n) for n in ("1.500", "4.750", "2.250", "2.000")] == sorted(
        shown.index(n) for n in ("1.500", "4.750", "2.250", "2.000")
    )
    assert "3 documents, 12,345 bytes" in shown
    assert "each document by itself" in shown
