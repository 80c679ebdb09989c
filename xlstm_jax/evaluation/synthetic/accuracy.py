"""How often a model says the right answer, over all rows and by their length."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from xlstm_jax.evaluation.synthetic.tasks import Rows
from xlstm_jax.models.language_model import LanguageModel

Answerer = Callable[[Any, ArrayLike, ArrayLike], Int[Array, " rows"]]
"""(params, tokens (rows, seq), lengths (rows,)) -> answers (rows,)."""


class LengthBin(NamedTuple):
    """Accuracy at lengths `low` to `high`."""

    low: int
    high: int
    rows: int
    accuracy: float


def make_answerer(model: LanguageModel) -> Answerer:
    """The compiled function (params, tokens, lengths) -> the likeliest token of the vocabulary at each row's end."""

    def answer(params: Any, tokens: Array, lengths: Array) -> Array:
        variables = {"params": params}
        # No mask: what follows a row's end cannot reach it.
        hidden: Any = model.apply(variables, tokens, method="features")
        at_end = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
        logits: Any = model.apply(variables, at_end, method="head")
        return jnp.argmax(logits, axis=-1)

    return jax.jit(answer)


def right_answers(answerer: Answerer, params: Any, rows: Rows, batch_size: int) -> Bool[np.ndarray, " rows"]:
    """Which rows are answered rightly; read `batch_size` at a time, so that there is one compiled shape."""
    count = len(rows.lengths)
    right = []
    for start in range(0, count, batch_size):
        batch = np.arange(start, start + batch_size) % count
        right.append(np.asarray(answerer(params, rows.tokens[batch], rows.lengths[batch])) == rows.answers[batch])
    return np.concatenate(right)[:count]


def by_length(rows: Rows, right: Bool[np.ndarray, " rows"], low: int, high: int, bins: int) -> list[LengthBin]:
    """Accuracy in about equal ranges of lengths from `low` to `high`; ranges without rows are left out."""
    edges = np.unique(np.linspace(low, high + 1, bins + 1).astype(int))
    found = []
    for first, after in itertools.pairwise(edges):
        inside = (rows.lengths >= first) & (rows.lengths < after)
        if inside.any():
            found.append(LengthBin(int(first), int(after) - 1, int(inside.sum()), float(right[inside].mean())))
    return found
