"""How well a model predicts a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from xlstm_jax.data.store import windows
from xlstm_jax.kernels.cross_entropy import cross_entropy
from xlstm_jax.models.language_model import LanguageModel
from xlstm_jax.scoring.pieces import SHORTEST_PIECE, pieces, power_of_two


@dataclass(frozen=True)
class TextScore:
    """Cross-entropy of one document, its end included."""

    nats: float
    tokens: int
    """Targets: the text's tokens and the EOD that ends it."""
    raw_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits of all targets over the bytes of the text; infinite for an empty text."""
        return self.nats / math.log(2) / self.raw_bytes if self.raw_bytes else math.inf

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(self.nats / self.tokens, 700.0))


class TextScorer:
    """A model's compiled scoring of one document, read in pieces with its state carried.

    A Transformer reads windows of its context length that overlap by half, see `windows`, and a whole document at once
    if it has none.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._piece = jax.jit(partial(_score_piece, model), donate_argnums=1)

    def __call__(self, params: Any, document: Int32[np.ndarray, " tokens"], raw_bytes: int) -> TextScore:
        """The score of a document, given as [EOD] tokens [EOD]."""
        if not self._model.fixed_state:
            return TextScore(self._score_windows(params, document), len(document) - 1, raw_bytes)
        targets = len(document) - 1
        state, total, begin = self._model.init_state(1), 0.0, 0
        for size in pieces(targets):
            column = begin + np.arange(size)
            tokens = np.zeros((1, size + 1), np.int32)
            part = document[begin : begin + size + 1]
            tokens[0, : len(part)] = part
            mask = (column < targets)[None]
            nats, state = self._piece(params, state, tokens, (column == 0)[None], mask, mask)
            total += float(nats)
            begin += size
        return TextScore(total, targets, raw_bytes)

    def _score_windows(self, params: Any, document: Int32[np.ndarray, " tokens"]) -> float:
        targets, context = len(document) - 1, self._model.config.context_length
        total = 0.0
        for window in windows(targets, context if context > 0 else targets):
            length = window.end - window.start
            size = max(SHORTEST_PIECE, power_of_two(length))
            tokens = np.zeros((1, size + 1), np.int32)
            tokens[0, : length + 1] = document[window.start : window.end + 1]
            column = np.arange(size)[None]
            mask, scored = column < length, column >= window.scored - window.start
            nats, _ = self._piece(params, None, tokens, column == 0, mask, mask & scored)
            total += float(nats)
        return total


def _score_piece(
    model: LanguageModel,
    params: Any,
    state: Any,
    tokens: Int[Array, "one seq_and_one"],
    borders: Bool[Array, "one seq"],
    mask: Bool[Array, "one seq"],
    scored: Bool[Array, "one seq"],
) -> tuple[Array, Any]:
    variables = {"params": params}
    features: Any = model.apply(
        variables,
        tokens[:, :-1],
        document_borders=borders,
        mask=mask,
        state=state,
        return_state=state is not None,
        method="features",
    )
    if state is not None:
        features, state = features

    def head(chunk: Array) -> Any:
        return model.apply(variables, chunk, method="head")

    return cross_entropy(head, features, jnp.asarray(tokens[:, 1:]), scored).nats, state
