"""Bits per byte side by side: as numbers for a file, as a small table for the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from xlstm_jax.config import to_json
from xlstm_jax.data.store import TokenStore
from xlstm_jax.scoring.baselines import byte_counts, compressed_bits_per_byte, gzip_size, unigram_bits_per_byte, xz_size


@dataclass
class Comparison:
    """Bits per byte on the held-out files of a store, lower is better; NaN never stands here, None for no files."""

    model: float
    unigram: float
    gzip: float
    xz: float
    files: int
    raw_bytes: int

    def to_dict(self) -> dict:
        return to_json(self, "comparison")


def compare(model: float, store: TokenStore) -> Comparison:
    """A model's bits per byte beside those of the baselines on the same files."""
    held_out = store.split("validation")
    documents = [held_out.document_bytes(i) for i in range(held_out.num_documents)]
    return Comparison(
        model=model,
        unigram=unigram_bits_per_byte(byte_counts(store.split("train")), byte_counts(held_out)),
        gzip=compressed_bits_per_byte(documents, gzip_size),
        xz=compressed_bits_per_byte(documents, xz_size),
        files=held_out.num_documents,
        raw_bytes=held_out.raw_bytes,
    )


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The table `model | unigram | gzip | xz`."""
    console.print(
        f"bits per byte on all held-out text ({comparison.files} document{'' if comparison.files == 1 else 's'}, "
        f"{comparison.raw_bytes:,} bytes; gzip and xz pack each document by itself)",
        soft_wrap=True,
    )
    table = Table()
    names = {"model": "model", "unigram": "unigram bytes", "gzip": "gzip -9", "xz": "xz -9"}
    for title in names.values():
        table.add_column(title, justify="right", style="bold green" if title == "model" else None)
    table.add_row(*(f"{getattr(comparison, name):.3f}" for name in names))
    console.print(table)
