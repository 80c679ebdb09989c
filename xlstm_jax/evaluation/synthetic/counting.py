"""What occurs most often, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xlstm_jax.evaluation.synthetic.task import AnswerAtEnd, Words, below, inside

_SYMBOLS = 63


@dataclass(frozen=True)
class Majority(AnswerAtEnd):
    """63 symbols, drawn uniformly; the answer is the most frequent one, of several that which occurs first.

    xLSTM, arXiv 2405.04517, B.1.1; the rule for ties is SLiCE's (data_dir/fl_tasks/majority.py). Chance 1/63.
    """

    question: ClassVar[str] = "the most frequent symbol, the first of several"
    source: ClassVar[str] = "xLSTM, arXiv 2405.04517, B.1.1; SLiCE, arXiv 2505.17761"
    first_answer: ClassVar[int] = 1
    classes: ClassVar[int] = _SYMBOLS
    shortest: ClassVar[int] = 1

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("[PAD]", *map(str, range(1, _SYMBOLS + 1)))

    def answer(self, words: Words, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        drawn, counts = _counted(words, lengths)
        often = np.where(inside(lengths, drawn.shape[1]), np.take_along_axis(counts, drawn, axis=1), 0)
        return 1 + drawn, drawn[np.arange(len(drawn)), np.argmax(often, axis=1)]


@dataclass(frozen=True)
class MajorityCount(Majority):
    """As `Majority`, but the answer is how often it occurs, written as the token of that number; at most 63."""

    question: ClassVar[str] = "how often the most frequent symbol occurs"

    def answer(self, words: Words, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        drawn, counts = _counted(words, lengths)
        return 1 + drawn, np.minimum(counts.max(axis=1), _SYMBOLS) - 1


def _counted(words: Words, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symbols from 0 (rows, seq), and how often each occurs in a row (rows, symbols)."""
    drawn = below(words, _SYMBOLS)
    rows = len(drawn)
    cells = (np.arange(rows)[:, None] * _SYMBOLS + drawn)[inside(lengths, drawn.shape[1])]
    return drawn, np.bincount(cells, minlength=rows * _SYMBOLS).reshape(rows, _SYMBOLS)
