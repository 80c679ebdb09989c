"""How well a model predicts documents of any length, each by itself and by position: in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

from xlstm_jax.data.store import HeldoutBatch, HeldoutDocuments, HeldoutWindows, Split
from xlstm_jax.scoring.chunks import chunk_size
from xlstm_jax.scoring.finite import not_finite
from xlstm_jax.scoring.score import Score, Scorer

BATCH_TOKENS = 2048
"""Tokens that are read at once, in all rows together."""
MOST_ROWS = 8
FIRST_BIN = 16
"""Positions in the first bin; each other bin holds as many as all before it."""
NUM_BINS = 32
"""More than the positions of any document need."""


@dataclass(frozen=True)
class DocumentScore:
    """What a model pays for one document."""

    number: int
    nats_by_position: Float64[np.ndarray, " bins"]
    """Sums over the targets of each bin of positions: in the document, or since the memory was emptied."""
    end_nats: float
    """What the EOD that ends the document costs, which is the last target."""

    @property
    def nats(self) -> float:
        """Of all targets."""
        return float(self.nats_by_position.sum())


def position_bins(positions: Int32[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The bin of each position: 0 for the first 16, 1 for 16...31, 2 for 32...63, and so on."""
    return np.maximum(np.frexp(positions.astype(np.float64))[1] - FIRST_BIN.bit_length() + 1, 0).astype(np.int64)


def bin_range(number: int) -> tuple[int, int]:
    """The first position of a bin, and the first behind it."""
    return (FIRST_BIN << number) // 2 if number else 0, FIRST_BIN << number


def bin_sizes(length: int, clear_every: int | None) -> Int64[np.ndarray, " bins"]:
    """How many targets of a document of `length` targets each bin has."""
    stretch = length if clear_every is None else clear_every
    ranges = np.array([bin_range(number) for number in range(NUM_BINS)])

    def of(size: int) -> Int64[np.ndarray, " bins"]:
        return np.clip(np.minimum(ranges[:, 1], size) - ranges[:, 0], 0, None)

    return length // stretch * of(stretch) + of(length % stretch)


class DocumentScorer:
    """Scores the documents of a split one by one, each from an empty memory that is carried to its end.

    A Transformer reads windows of its context length that overlap by half, see `windows`; one without a context length
    reads each document at once.

    Args:
        scorer: of the model.
        split: the documents.
        bos_id: the token that opens a document, where it is not the EOD.
        clear_every: empty the memory before the first and every so many targets of a document.
        most_rows, tokens: rows side by side at most, and tokens in all of them; the score does not depend on them.
    """

    def __init__(
        self,
        scorer: Scorer,
        split: Split,
        *,
        bos_id: int | None = None,
        clear_every: int | None = None,
        most_rows: int = MOST_ROWS,
        tokens: int = BATCH_TOKENS,
    ) -> None:
        self._scorer, self._split, self._bos_id, self._clear_every = scorer, split, bos_id, clear_every
        self._most_rows, self._tokens = most_rows, tokens

    def __call__(
        self, params: Any, documents: Sequence[int] | None = None, advance: Callable[[int], None] = lambda targets: None
    ) -> Iterator[DocumentScore]:
        """The scores of documents, as they are finished.

        Args:
            documents: numbers of those to read; None means all.
            advance: told how many targets were scored since.

        Raises:
            NotFiniteError: if the model's logits are NaN or infinite.
        """
        chosen = list(range(self._split.num_documents)) if documents is None else list(documents)
        if not chosen:
            return
        lengths = np.diff(np.asarray(self._split.offsets).astype(np.int64))
        batches = self._batches(lengths[chosen], chosen)
        state = self._scorer.start(batches.batch_size)
        by_position = {number: np.zeros(NUM_BINS) for number in chosen}
        left = {number: int(lengths[number]) for number in chosen}
        ends: dict[int, float] = {}

        def taken(batch: HeldoutBatch, nats: Any) -> Iterator[DocumentScore]:
            counted = batch.rows.loss_mask
            found = np.asarray(nats).astype(np.float64)[counted]
            numbers, positions = batch.documents[counted], batch.positions[counted]
            bins = position_bins(positions if self._clear_every is None else positions % self._clear_every)
            for number in np.unique(numbers).tolist():
                own = numbers == number
                by_position[number] += np.bincount(bins[own], found[own], NUM_BINS)
                left[number] -= int(own.sum())
                last = own & (positions == lengths[number] - 1)
                if last.any():
                    ends[number] = float(found[last][0])
                if not left[number]:
                    score = DocumentScore(number, by_position.pop(number), ends.pop(number))
                    if not math.isfinite(score.nats):
                        raise not_finite(params, "the logits of the text")
                    yield score
            advance(int(counted.sum()))

        # What a batch came to is fetched while the next one is computed.
        before: tuple[HeldoutBatch, Any] | None = None
        for batch in batches:
            self._prepare(batch)
            tokens, targets, borders, loss_mask = batch.rows
            nats, state = self._scorer.each(params, state, tokens, targets, borders, loss_mask)
            if before is not None:
                yield from taken(*before)
            before = batch, nats
        assert before is not None
        yield from taken(*before)

    def _batches(self, lengths: Int64[np.ndarray, " documents"], documents: list[int]) -> Any:
        total, longest = int(lengths.sum()), int(lengths.max())
        if not self._scorer.model.fixed_state:
            size = min(self._scorer.window(longest), chunk_size(longest))
            if self._clear_every is not None:
                size = min(size, self._clear_every)
            rows = max(1, min(self._most_rows, self._tokens // size))
            return HeldoutWindows(
                self._split, batch_size=rows, seq_len=size, documents=documents, clear_every=self._clear_every
            )
        # Rows beside one that is much longer would be empty most of the time.
        rows = 1 << min(self._most_rows, total // longest).bit_length() - 1
        size = min(self._tokens // rows, chunk_size(max(longest, -(-total // rows))))
        return HeldoutDocuments(self._split, batch_size=rows, seq_len=size, documents=documents)

    def _prepare(self, batch: HeldoutBatch) -> None:
        counted, borders = batch.rows.loss_mask, batch.rows.document_borders
        if self._bos_id is not None:
            opening = borders & (batch.positions == 0)
            batch.rows.inputs[opening] = self._bos_id
        if self._clear_every is not None and self._scorer.model.fixed_state:
            borders |= counted & (batch.positions % self._clear_every == 0)


def score_document(scorer: Scorer, params: Any, document: Int32[np.ndarray, " tokens"], raw_bytes: int) -> Score:
    """The score of a document, given as [EOD] tokens [EOD]; the first may be another that opens it.

    Raises:
        NotFiniteError: if the model's logits are NaN or infinite.
    """
    bos_id, eod_id = int(document[0]), int(document[-1])
    split = Split.from_documents([document[1:-1]], eod_id=eod_id)
    (score,) = DocumentScorer(scorer, split, bos_id=bos_id)(params)
    return Score(score.nats, len(document) - 1, raw_bytes)
