"""What the same tokens cost at one position of a window and at another: how far a model uses what it has read, and
whether it holds beyond the length that it was trained for.

A mean over positions of one window mixes up the position and the text that stands there. Here every stretch of
positions is measured on the same targets: windows begin so that each target stands once in the stretch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Integer

from xlstm_jax.data.store.batch import Batch
from xlstm_jax.scoring.chunks import LONGEST_CHUNK, chunk_size, power_of_two
from xlstm_jax.scoring.documents import BATCH_TOKENS, MOST_ROWS
from xlstm_jax.scoring.finite import not_finite
from xlstm_jax.scoring.score import Scorer

CACHED_TOKENS = 16_384
"""Positions that a Transformer's cache has in all rows together, if one row needs no more."""


class Stretch(NamedTuple):
    """Positions of a window, the first one's being 0."""

    first: int
    end: int
    """The first one behind."""


class Region(NamedTuple):
    """Targets of a document, the first token's being 0."""

    document: int
    first: int
    end: int


@dataclass(frozen=True)
class PositionLoss:
    """What the targets cost when each is read at one of the positions."""

    positions: Stretch
    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens


def stretches(lengths: Sequence[int]) -> list[Stretch]:
    """The positions up to each length from the one before."""
    edges = [0, *sorted(set(lengths))]
    return [Stretch(*pair) for pair in itertools.pairwise(edges)]


def regions(sizes: Sequence[int], wanted: Sequence[Stretch], most: int) -> list[Region]:
    """The targets of documents that can be read at each of the wanted positions, up to `most` in all.

    Args:
        sizes: targets of each document.
        most: a document gives whole multiples of the widest stretch, so that each position gets as many targets; the
            first one that is long enough gives one at least.
    """
    before, widest = max(first for first, _ in wanted), max(end - first for first, end in wanted)
    found: list[Region] = []
    left = max(most, widest)
    for number, size in enumerate(sizes):
        room = min(size - before, left) // widest * widest
        if room > 0:
            found.append(Region(number, before, before + room))
            left -= room
    return found


def loss_by_position(
    scorer: Scorer,
    params: Any,
    documents: Sequence[Integer[np.ndarray, " _"]],
    lengths: Sequence[int],
    *,
    most: int = 1 << 16,
) -> list[PositionLoss]:
    """The loss of a model by position, to lengths that it may never have been trained for.

    A state is carried from the first position of a window to its last; a Transformer reads all of it, too, by its
    rotary positions, however long it was trained for.

    Args:
        scorer: of the model.
        documents: tokens, the first of each being the one that opens it.
        lengths: the ends of the bins of positions; the first bin begins at 0.
        most: targets to score in each bin, the same in all.

    Returns:
        An entry for each length, in ascending order.

    Raises:
        ValueError: if no document has as many targets as the greatest length.
        NotFiniteError: if the model's logits are NaN or infinite.
    """
    wanted = stretches(lengths)
    found = regions([len(document) - 1 for document in documents], wanted, most)
    if not found:
        raise ValueError(f"no document has {max(lengths):,} tokens to read, the greatest of the lengths")
    reader = PositionScorer(scorer, documents, found)
    return [reader(params, positions) for positions in wanted]


class PositionScorer:
    """Scores the same targets at positions of one's choice.

    Args:
        scorer: of the model.
        documents: tokens, the first of each being the one that opens it.
        regions: the targets.
    """

    def __init__(
        self, scorer: Scorer, documents: Sequence[Integer[np.ndarray, " _"]], regions: Sequence[Region]
    ) -> None:
        self._scorer, self._documents, self._regions = scorer, documents, regions
        self.tokens = sum(end - first for _, first, end in regions)
        """How many targets there are."""

    def __call__(
        self, params: Any, positions: Stretch, advance: Callable[[int], None] = lambda targets: None
    ) -> PositionLoss:
        """What the targets cost, each read once at one of the positions.

        Args:
            advance: told how many targets were scored since.

        Raises:
            NotFiniteError: if the model's logits are NaN or infinite.
        """
        windows = self._windows(positions)
        rows = min(MOST_ROWS, power_of_two(len(windows)))
        state: Any
        if self._scorer.model.fixed_state:
            state = self._scorer.start(rows)
        else:
            rows = min(rows, max(1, CACHED_TOKENS // positions.end))
            state = self._scorer.model.init_state(rows, positions.end)
        sums: list[float] = []
        before: tuple[Any, int] | None = None
        # What a batch came to is fetched while the next one is computed.
        for batch in self._batches(windows, positions, rows):
            nats, state = self._scorer(params, state, *batch)
            if before is not None:
                sums.append(float(before[0]))
                advance(before[1])
            before = nats, int(batch.loss_mask.sum())
        if before is not None:
            sums.append(float(before[0]))
            advance(before[1])
        total = float(np.sum(sums))
        if not math.isfinite(total):
            raise not_finite(params, f"the logits at positions {positions.first:,} to {positions.end - 1:,}")
        return PositionLoss(positions, total, self.tokens)

    def _windows(self, positions: Stretch) -> list[Region]:
        """Where to read so that each target stands once at one of the positions; those behind `end` are not read."""
        found = []
        for document, first, end in self._regions:
            for target in range(first, end, positions.end - positions.first):
                start = target - positions.first
                found.append(Region(document, start, min(start + positions.end, end)))
        return found

    def _batches(self, windows: Sequence[Region], positions: Stretch, rows: int) -> Iterator[Batch]:
        """The windows, dealt to rows, each row one after another, in chunks."""
        longest = -(-len(windows) // rows) * positions.end
        size = min(chunk_size(longest), max(LONGEST_CHUNK, BATCH_TOKENS // rows))
        for start in range(0, longest, size):
            shape = (rows, size)
            tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
            borders, counts = np.zeros(shape, bool), np.zeros(shape, bool)
            place = start
            while place < start + size:
                turn, offset = divmod(place, positions.end)
                length = min(positions.end - offset, start + size - place)
                here = slice(place - start, place - start + length)
                # Behind the last window, too: a cache has room for the positions of one.
                borders[:, here.start] = offset == 0
                for row, (document, first, end) in enumerate(windows[turn * rows : (turn + 1) * rows]):
                    found = self._read(document, first + offset, min(first + offset + length, end))
                    count = max(len(found) - 1, 0)
                    written = slice(here.start, here.start + count)
                    tokens[row, written], targets[row, written] = found[:-1], found[1:]
                    counts[row, written] = offset + np.arange(count) >= positions.first
                place += length
            yield Batch(tokens, targets, borders, counts)

    def _read(self, document: int, first: int, end: int) -> Int32[np.ndarray, " tokens"]:
        """The targets from `first` on with the token before them."""
        return (
            np.asarray(self._documents[document][first : end + 1], np.int32) if end > first else np.zeros(0, np.int32)
        )
