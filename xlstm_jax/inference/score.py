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

from xlstm_jax.inference.engine import pieces
from xlstm_jax.kernels.cross_entropy import cross_entropy
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel


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
    """A model's compiled scoring of one document, read in pieces with its state carried."""

    def __init__(self, model: xLSTMLMModel) -> None:
        self._model = model
        self._piece = jax.jit(partial(_score_piece, model), donate_argnums=1)

    def __call__(self, params: Any, document: Int32[np.ndarray, " tokens"], raw_bytes: int) -> TextScore:
        """The score of a document, given as [EOD] tokens [EOD]."""
        targets = len(document) - 1
        state, total, begin = self._model.init_state(1), 0.0, 0
        for size in pieces(targets):
            column = begin + np.arange(size)
            tokens = np.zeros((1, size + 1), np.int32)
            part = document[begin : begin + size + 1]
            tokens[0, : len(part)] = part
            mask = (column < targets)[None]
            nats, state = self._piece(params, state, tokens, (column == 0)[None], mask)
            total += float(nats)
            begin += size
        return TextScore(total, targets, raw_bytes)


def _score_piece(
    model: xLSTMLMModel,
    params: Any,
    state: Any,
    tokens: Int[Array, "one seq_and_one"],
    borders: Bool[Array, "one seq"],
    mask: Bool[Array, "one seq"],
) -> tuple[Array, Any]:
    variables = {"params": params}
    features, state = model.apply(
        variables,
        tokens[:, :-1],
        document_borders=borders,
        mask=mask,
        state=state,
        return_state=True,
        method="features",
    )

    def head(chunk: Array) -> Any:
        return model.apply(variables, chunk, method="head")

    return cross_entropy(head, features, jnp.asarray(tokens[:, 1:]), mask).nats, state
