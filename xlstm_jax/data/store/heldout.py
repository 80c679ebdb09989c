"""Held-out documents read whole, each with its state carried, in batches of one shape.

Bits per byte need every document scored from its opening EOD to its closing EOD by a model that remembers all of it.
Documents differ in length, so they are dealt to `batch_size` rows, the longest first, each to the emptiest row; a row
is its documents one after another, cut every `seq_len` positions. Carry the state of each row from batch to batch and
reset it at the borders.

A model that cannot look back further than some length reads windows of that length instead.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from xlstm_jax.config import ConfigError
from xlstm_jax.data.store.batch import Batch
from xlstm_jax.data.store.split import Split


class HeldoutBatch(NamedTuple):
    """A batch, and whose targets it holds."""

    rows: Batch
    documents: Int32[np.ndarray, "batch seq"]
    """Number of the document that each position belongs to; -1 where `rows.loss_mask` is false."""
    positions: Int32[np.ndarray, "batch seq"]
    """Of each target in its document, the first token's being 0."""


class _Heldout:
    """What both ways to read have in common: the documents."""

    batch_size: int
    """Rows of every batch."""
    num_batches: int
    """Batches of one pass."""
    num_targets: int
    """Scored positions of one pass: tokens of the documents and one EOD each."""
    raw_bytes: int
    """Bytes of the documents before tokenizing."""
    document_numbers: list[int]
    """The documents that are read."""

    def __init__(self, split: Split, batch_size: int, seq_len: int, documents: Sequence[int] | None):
        if batch_size < 1 or seq_len < 1:
            raise ConfigError(f"batch_size is {batch_size} and seq_len is {seq_len}, but both must be >= 1")
        self.document_numbers = list(range(split.num_documents)) if documents is None else [int(d) for d in documents]
        if not self.document_numbers:
            raise ConfigError(f"there is no document to read in the split {split.name}")
        outside = [d for d in self.document_numbers if not 0 <= d < split.num_documents]
        if outside:
            raise ConfigError(f"the split {split.name} has no document {outside[0]}; it has {split.num_documents}")
        self._split, self.seq_len = split, seq_len
        self._lengths = {d: int(split.offsets[d + 1] - split.offsets[d]) for d in self.document_numbers}
        self.num_targets = sum(self._lengths[d] for d in self.document_numbers)
        self.raw_bytes = sum(int(split.sizes[d]) for d in self.document_numbers)

    def __len__(self) -> int:
        return self.num_batches

    def _empty(self) -> HeldoutBatch:
        shape = (self.batch_size, self.seq_len)
        tokens = (np.full(shape, self._split.eod_id, np.int32) for _ in range(2))
        flags = (np.zeros(shape, bool) for _ in range(2))
        return HeldoutBatch(Batch(*tokens, *flags), np.full(shape, -1, np.int32), np.zeros(shape, np.int32))


class HeldoutDocuments(_Heldout):
    """Iterates over batches that together score every target of the documents once, closing EODs included.

    The state of each row is to be carried from batch to batch.

    Args:
        batch_size: rows; no more are made than there are documents.
        seq_len: positions a batch.
        documents: numbers of the documents to read; None means all.

    Raises:
        ConfigError: there is no document to read, or a size below 1.
    """

    def __init__(self, split: Split, *, batch_size: int, seq_len: int, documents: Sequence[int] | None = None):
        super().__init__(split, batch_size, seq_len, documents)
        self.batch_size = min(batch_size, len(self.document_numbers))
        self._dealt, longest = _deal(self.document_numbers, self._lengths, self.batch_size)
        self.num_batches = -(-longest // seq_len)

    def __iter__(self) -> Iterator[HeldoutBatch]:
        rows = [_Row(self._split, documents) for documents in self._dealt]
        for _ in range(self.num_batches):
            batch = self._empty()
            for number, row in enumerate(rows):
                row.fill(batch, number)
            yield batch


class HeldoutWindows(_Heldout):
    """Iterates over batches like `HeldoutDocuments`, but each row is a window of a document and needs no state.

    The arguments are those of `HeldoutDocuments`; `seq_len` is the size of a window, `clear_every` the number of
    positions after which no window looks back (see `windows`), and rows beyond the last window are empty.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seq_len: int,
        documents: Sequence[int] | None = None,
        clear_every: int | None = None,
    ):
        super().__init__(split, batch_size, seq_len, documents)
        self._clear_every = clear_every
        rows = sum(1 for _ in self._rows())
        self.batch_size = min(batch_size, rows)
        self.num_batches = -(-rows // self.batch_size)

    def _rows(self) -> Iterator[tuple[int, Window]]:
        for document in self.document_numbers:
            for window in windows(self._lengths[document], self.seq_len, self._clear_every):
                yield document, window

    def __iter__(self) -> Iterator[HeldoutBatch]:
        rows = self._rows()
        for _ in range(self.num_batches):
            batch = self._empty()
            for row, (document, window) in enumerate(itertools.islice(rows, self.batch_size)):
                offset, length = int(self._split.offsets[document]), window.end - window.start
                tokens = self._split.tokens.read(offset + window.start, offset + window.end + 1)
                batch.rows.inputs[row, :length], batch.rows.targets[row, :length] = tokens[:-1], tokens[1:]
                batch.rows.document_borders[row, 0] = True
                batch.rows.loss_mask[row, window.scored - window.start : length] = True
                batch.documents[row, window.scored - window.start : length] = document
                batch.positions[row, :length] = np.arange(window.start, window.end)
            yield batch


class Window(NamedTuple):
    """Positions of a document that are read together; those from `scored` on are scored."""

    start: int
    scored: int
    end: int


def windows(length: int, size: int, clear_every: int | None = None) -> Iterator[Window]:
    """Windows of at most `size` positions that score each of `length` positions once.

    Each window begins half a window after the one before, so all positions but a document's first have at least half
    a window of text before them. With `clear_every` each stretch of so many positions is read like a document.
    """
    stretch = length if clear_every is None else clear_every
    for first in range(0, length, stretch):
        behind = min(first + stretch, length)
        window = Window(first, first, min(first + size, behind))
        yield window
        while window.end < behind:
            start = window.start + (size + 1) // 2
            window = Window(start, window.end, min(start + size, behind))
            yield window


class _Row:
    """One row's documents and how far they have been read."""

    def __init__(self, split: Split, documents: list[int]):
        self._split, self._documents, self._next, self._position = split, documents, 0, 0

    def fill(self, batch: HeldoutBatch, row: int) -> None:
        filled, seq_len = 0, batch.documents.shape[1]
        while filled < seq_len and self._next < len(self._documents):
            number = self._documents[self._next]
            start, end = int(self._split.offsets[number]) + self._position, int(self._split.offsets[number + 1])
            tokens = self._split.tokens.read(start, min(end, start + seq_len - filled) + 1)
            here = slice(filled, filled + len(tokens) - 1)
            batch.rows.inputs[row, here], batch.rows.targets[row, here] = tokens[:-1], tokens[1:]
            batch.rows.document_borders[row, filled] = self._position == 0
            batch.rows.loss_mask[row, here] = True
            batch.documents[row, here] = number
            batch.positions[row, here] = np.arange(self._position, self._position + len(tokens) - 1)
            filled += len(tokens) - 1
            self._position += len(tokens) - 1
            if start + len(tokens) - 1 == end:
                self._next, self._position = self._next + 1, 0


def _deal(documents: list[int], lengths: dict[int, int], rows: int) -> tuple[list[list[int]], int]:
    dealt: list[list[int]] = [[] for _ in range(rows)]
    filled = [(0, row) for row in range(rows)]
    for document in sorted(documents, key=lambda d: (-lengths[d], d)):
        length, row = heapq.heappop(filled)
        dealt[row].append(document)
        heapq.heappush(filled, (length + lengths[document], row))
    return dealt, max(length for length, _ in filled)
