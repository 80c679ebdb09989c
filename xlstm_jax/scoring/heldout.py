"""How well a model predicts the held-out documents of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xlstm_jax.data.store import HeldoutBatch, HeldoutDocuments, HeldoutWindows, Split
from xlstm_jax.scoring.score import Score, Scorer

Progress = Callable[[Iterator[HeldoutBatch], int], Iterator[HeldoutBatch]]


class HeldOut:
    """Scores parameters on the documents of a split, every document read whole with its state carried.

    Documents lie one after another in the rows of a batch. A Transformer reads windows of its context length that
    overlap by half instead, see `Scorer.window`.

    Args:
        scorer: of the model whose parameters are to be scored.
        split: the documents.
        batch_size: rows read side by side; the score does not depend on them.
        seq_len: tokens of a row read at once; the score does not depend on it, unless the model is a Transformer whose
            `context_length` is not set: then it is the size of the windows.
        max_tokens: read only the first documents that fit into so many targets (one at least); all if None.
    """

    def __init__(
        self, scorer: Scorer, split: Split, *, batch_size: int = 8, seq_len: int = 256, max_tokens: int | None = None
    ) -> None:
        documents = first_documents(split, max_tokens)
        self.num_documents = len(documents)
        self._scorer = scorer
        self._batches: HeldoutDocuments | HeldoutWindows | None = None
        if not documents:
            return
        if scorer.model.fixed_state:
            self._batches = HeldoutDocuments(split, batch_size=batch_size, seq_len=seq_len, documents=documents)
        else:
            size = scorer.window(seq_len)
            self._batches = HeldoutWindows(split, batch_size=batch_size, seq_len=size, documents=documents)

    def __call__(self, params: Any, progress: Progress | None = None) -> Score:
        """The score of the model with these parameters.

        Args:
            progress: wraps the iteration over the batches, to show how far it is; gets their number too.

        Raises:
            ValueError: if the split has no documents.
        """
        if self._batches is None:
            raise ValueError("there are no held-out documents to score")
        batches: Iterator[HeldoutBatch] = iter(self._batches)
        if progress is not None:
            batches = progress(batches, self._batches.num_batches)
        state = self._scorer.start(self._batches.batch_size)
        sums = []
        for (tokens, targets, borders, loss_mask), *_ in batches:
            nats, state = self._scorer(params, state, tokens, targets, borders, loss_mask)
            sums.append(nats)
        # Summed on the host in float64: there are many batches.
        total = float(np.sum([np.asarray(nats, np.float64) for nats in sums]))
        return Score(total, self._batches.num_targets, self._batches.raw_bytes)


def first_documents(split: Split, max_tokens: int | None) -> list[int]:
    """The first documents that fit into a number of targets together; the shortest one if none does."""
    if max_tokens is None:
        return list(range(split.num_documents))
    lengths = np.diff(np.asarray(split.offsets).astype(np.int64))
    chosen, room = [], max_tokens
    for number in split.turns or range(split.num_documents):
        if lengths[number] <= room:
            chosen.append(number)
            room -= lengths[number]
    return chosen if chosen or not len(lengths) else [int(np.argmin(lengths))]
