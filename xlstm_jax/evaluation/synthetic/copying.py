"""Copying a string, and what followed a piece of it: Jelassi et al., Repeat After Me (arXiv 2402.01032).

The answer is written into the row, so that each of its tokens is read with those before it in sight, as in the paper's
training and its scores. A row has 2 n + 2 positions for a string of n letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from xlstm_jax.config import PositiveInt
from xlstm_jax.evaluation.synthetic.task import PAD, Drawn, Task, Words, below

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_START, _BAR = 27, 28
_SOURCE = "Jelassi et al., arXiv 2402.01032; synthetic_exps/data_utils.py of sjelassi/transformers_ssm_copy at 1f32ac6"


@dataclass(frozen=True)
class Copy(Task):
    """$ string | string: the string once more, letter by letter.

    26 letters, drawn uniformly. The paper's end token is left out: its scores do not count it either. It trains on 5 to
    20 or 20 to 50 letters, several strings a row of 220 tokens; here a row has one. Right are whole strings; token
    accuracy is the paper's character accuracy.
    """

    question: ClassVar[str] = "the string once more"
    source: ClassVar[str] = _SOURCE
    right: ClassVar[Literal["token", "sequence"]] = "sequence"

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("[PAD]", *_LETTERS, "$", "|")

    @property
    def chance(self) -> float:
        """Of a whole string: less than 26**-n, which is none."""
        return 0.0

    def possible(self, high: int) -> np.ndarray:
        return np.arange(self._shortest(), high + 1, 2)

    def _shortest(self) -> int:
        return 4

    def _possible_in_words(self) -> str:
        return f"even lengths from {self._shortest()}"

    def max_targets(self, length: int) -> int:
        return (length - 2) // 2

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        string, sizes = 1 + below(words, len(_LETTERS)), (lengths - 2) // 2
        place, size = np.arange(width), sizes[:, None]
        letters = np.take_along_axis(string, np.clip((place - 1) % (size + 1), 0, size - 1), axis=1)
        inputs = np.where(place == 0, _START, np.where(place == size + 1, _BAR, letters))
        answer = place - size - 1
        mask = (answer >= 0) & (answer < size)
        return inputs, np.take_along_axis(string, np.clip(answer, 0, width - 1), axis=1), mask


@dataclass(frozen=True)
class NGramLookup(Copy):
    """What follows an n-gram in a string: $ n-gram | string | answer, or $ string | n-gram answer.

    The n-gram is that at a uniform place of the string, with a letter behind it; where it occurs more than once its
    first place counts. The answer is what follows, to the end of the string or `answer` letters.
    """

    order: Literal["prefix", "suffix"] = "suffix"
    """Whether the n-gram stands before the string or behind it: a memory of fixed size need not keep the string if it
    knows before what it is asked."""
    ngram: PositiveInt = 3
    answer: PositiveInt | None = None

    question: ClassVar[str] = "what follows an n-gram"

    def _shortest(self) -> int:
        return 2 * (self.ngram + 1) + 2

    def words(self, length: int) -> int:
        return 1 + length

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        gram, sizes = self.ngram, (lengths - 2) // 2
        string, place = 1 + below(words[:, 1:], len(_LETTERS)), np.arange(width)
        chosen = below(words[:, 0], sizes - gram)
        rows = np.arange(len(words))
        grams = np.lib.stride_tricks.sliding_window_view(string, gram, axis=1)
        found = np.argmax((grams == grams[rows, chosen][:, None]).all(axis=2), axis=1)[:, None]
        size = sizes[:, None]
        count = size - found - gram
        if self.answer is not None:
            count = np.minimum(count, self.answer)

        def letters(first: np.ndarray | int) -> np.ndarray:
            """The string from `found` on, so that its first letter stands at `first`."""
            return np.take_along_axis(string, np.clip(found + place - first, 0, width - 1), axis=1)

        start, bar = np.full_like(string, _START), np.full_like(string, _BAR)
        if self.order == "suffix":
            asked = size + 1 + gram  # the last letter of the n-gram
            where = [place == 0, place <= size, place == size + 1]
            what = [start, np.roll(string, 1, axis=1), bar, letters(size + 2)]
        else:
            asked = size + gram + 2  # the second bar
            where = [place == 0, (place == gram + 1) | (place == asked), place <= gram, place < asked]
            what = [start, bar, letters(1), np.roll(string, gram + 2, axis=1), letters(asked + 1 - gram)]
        inputs = np.select(where, what[:-1], what[-1])
        answers = letters(asked - gram)
        inputs = np.where(place < asked + count, inputs, PAD)
        return inputs, answers, (place >= asked) & (place < asked + count)
