"""How often a model says the right token, over all targets and rows, and by length or position."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from xlstm_jax.evaluation.synthetic.at_targets import AtTargets, Questions
from xlstm_jax.evaluation.synthetic.task import Rows, Task
from xlstm_jax.models.language_model import LanguageModel

Answerer = Callable[[Any, ArrayLike, ArrayLike], Int[Array, "rows targets"]]
"""(params, tokens (rows, seq), positions (rows, targets)) -> answers (rows, targets)."""

ROWS_AT_ONCE, _POSITIONS, _LOGITS = 256, 1 << 17, 1 << 25
"""At most so many rows, positions and logits are answered at once."""


class LengthBin(NamedTuple):
    """Accuracy at lengths, or positions, `low` to `high`."""

    low: int
    high: int
    rows: int
    """Rows or, by position, targets."""
    accuracy: float


class Marks(NamedTuple):
    """The answers to rows, marked."""

    right: Bool[np.ndarray, "rows targets"]
    """False where a row has no such target."""
    mask: Bool[np.ndarray, "rows targets"]
    positions: Int[np.ndarray, "rows targets"]
    lengths: Int[np.ndarray, " rows"]

    @property
    def by_row(self) -> Bool[np.ndarray, " rows"]:
        """Which rows have all of their targets right."""
        return (self.right | ~self.mask).all(axis=1)

    @property
    def tokens(self) -> float:
        """The share of targets that are right."""
        return float(self.right.sum() / max(int(self.mask.sum()), 1))

    @property
    def sequences(self) -> float:
        """The share of rows that are right."""
        return float(self.by_row.mean())

    def accuracy(self, task: Task) -> float:
        """Of tokens or of rows, as the task counts."""
        return self.sequences if task.right == "sequence" else self.tokens


def make_answerer(model: LanguageModel) -> Answerer:
    """The compiled function (params, tokens, positions) -> the likeliest token of the vocabulary at each position."""
    asked = AtTargets(model)

    def answer(params: Any, tokens: Array, positions: Array) -> Array:
        variables = {"params": params}
        hidden = asked.apply(variables, Questions(tokens, positions), method="features")
        return jnp.argmax(asked.apply(variables, hidden, method="head"), axis=-1)

    return jax.jit(answer)


def mark(answerer: Answerer, params: Any, rows: Rows, task: Task) -> Marks:
    """Answer rows and mark them; as many at once as memory is good for, so that there is one compiled shape."""
    count, seq = rows.inputs.shape
    asked = rows.asked(task.max_targets(seq))
    targets = asked.targets.shape[1]
    at_once = max(1, min(ROWS_AT_ONCE, count, _POSITIONS // seq, _LOGITS // (targets * task.vocab_size)))
    answers = []
    for start in range(0, count, at_once):
        batch = np.arange(start, start + at_once) % count
        answers.append(np.asarray(answerer(params, rows.inputs[batch], asked.positions[batch])))
    right = (np.concatenate(answers)[:count] == asked.targets) & asked.mask
    return Marks(right, asked.mask, asked.positions, rows.lengths)


def by_length(marks: Marks, task: Task, low: int, high: int, bins: int) -> list[LengthBin]:
    """Accuracy in about equal ranges of lengths from `low` to `high`; ranges without rows are left out.

    Where the task is drawn by position, these are of the positions of targets, counted from 1.
    """
    lengths = np.broadcast_to(marks.lengths[:, None], marks.mask.shape)
    place = marks.positions + 1 if task.by_position else lengths
    edges = np.unique(np.linspace(low, high + 1, bins + 1).astype(int))
    found = []
    for first, after in itertools.pairwise(edges):
        inside = (place >= first) & (place < after) & marks.mask
        if not inside.any():
            continue
        if task.right == "sequence":
            own = inside.any(axis=1)
            size, accuracy = int(own.sum()), float(marks.by_row[own].mean())
        else:
            size = int(inside.sum() if task.by_position else inside.any(axis=1).sum())
            accuracy = float(marks.right[inside].mean())
        found.append(LengthBin(int(first), int(after) - 1, size, accuracy))
    return found
