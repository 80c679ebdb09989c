"""How well a model predicts one text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Int32

from xlstm_jax.data.store import Window, windows
from xlstm_jax.scoring.chunks import chunk_size, chunks
from xlstm_jax.scoring.finite import not_finite
from xlstm_jax.scoring.score import Score, Scorer


def score_document(scorer: Scorer, params: Any, document: Int32[np.ndarray, " tokens"], raw_bytes: int) -> Score:
    """The score of a document, given as [EOD] tokens [EOD].

    It is read in chunks with the state carried. A Transformer reads windows of its context length that overlap by
    half, see `windows`, and the whole document at once if it has none.

    Raises:
        NotFiniteError: if the model's logits are NaN or infinite.
    """
    targets = len(document) - 1
    state, total = scorer.start(1), 0.0
    carried = state is not None
    if carried:
        spans = [Window(start, start, min(start + size, targets)) for start, size in chunks(targets)]
    else:
        spans = windows(targets, scorer.window(targets))
    for start, scored, end in spans:
        size = chunk_size(end - start)
        tokens = np.zeros((1, size + 1), np.int32)
        tokens[0, : end - start + 1] = document[start : end + 1]
        position = start + np.arange(size)[None]
        borders = position == (0 if carried else start)
        mask = position < end
        nats, state = scorer(params, state, tokens[:, :-1], tokens[:, 1:], borders, mask & (position >= scored), mask)
        total += float(nats)
    if not math.isfinite(total):
        raise not_finite(params, "the logits of the text")
    return Score(total, targets, raw_bytes)
