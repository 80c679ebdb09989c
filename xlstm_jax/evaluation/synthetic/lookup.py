"""Finding one thing again among many: a number in a phone book, a needle in filler text, the nearest neighbour."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from xlstm_jax.config import ConfigError, PositiveInt
from xlstm_jax.evaluation.synthetic.task import PAD, Drawn, Task, Words, below, distinct, inside

_DIGITS = tuple(string.digits)


@dataclass(frozen=True)
class PhoneBook(Task):
    """Lines of first name, last name, :, ten digits and the end of the line; two of them once more; and a name.

    Jelassi et al. (arXiv 2402.01032; pretrained_exps/data_utils.py of sjelassi/transformers_ssm_copy at 1188c47), who
    ask language models in English. Here names are tokens, 64 first and 64 last ones, no two lines of a book have the
    same name, and a model is trained: its rows are not those of the paper. The first digit is one of 6 to 9. The two
    examples and the name that is asked for are of three different lines, and stand after an empty line each. The digits
    of the answer are written into the row, behind where they are asked for. Right are whole numbers.
    """

    names: PositiveInt = 64
    """First names, and last names."""
    digits: PositiveInt = 10

    question: ClassVar[str] = "the number that belongs to a name"
    source: ClassVar[str] = "Jelassi et al., arXiv 2402.01032, with tokens for names"
    right: ClassVar[Literal["token", "sequence"]] = "sequence"

    @property
    def symbols(self) -> tuple[str, ...]:
        people = (f"{kind}{number}" for kind in ("first", "last") for number in range(self.names))
        return ("[PAD]", *_DIGITS, ":", "\\n", *people)

    @property
    def chance(self) -> float:
        return 1 / (4 * 10 ** (self.digits - 1))

    @property
    def line(self) -> int:
        """Tokens of a line."""
        return 4 + self.digits

    @property
    def _tail(self) -> int:
        """Positions behind the book: a line's end, two lines, another end, the name, :, all digits but the last."""
        return 2 + 2 * self.line + 3 + self.digits - 1

    def entries(self, length: Any) -> Any:
        """Lines of the book in a row of that length, or in rows of these."""
        return (length - self._tail) // self.line

    def _most(self, length: int) -> int:
        return min(self.entries(length), self.names**2)

    def possible(self, high: int) -> np.ndarray:
        return self._tail + self.line * np.arange(3, self._most(high) + 1)

    def _possible_in_words(self) -> str:
        return f"lengths of {self._tail} + {self.line} for each of 3 to {self.names**2} lines"

    def max_targets(self, length: int) -> int:
        return self.digits

    def words(self, length: int) -> int:
        return self._most(length) * (2 + self.digits)

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        rows, most = len(words), self._most(width)
        entries = self.entries(lengths)
        names, picks, numbers = np.split(words, [most, 2 * most], axis=1)
        digits = below(numbers, 10).reshape(rows, most, self.digits)
        digits[:, :, 0] = 6 + below(numbers.reshape(rows, most, self.digits)[:, :, 0], 4)
        first, last = np.divmod(distinct(names, self.names**2), self.names)
        colon, end = self.symbols.index(":"), self.symbols.index("\\n")
        lines = np.empty((rows, most, self.line), np.int64)
        lines[:, :, 0], lines[:, :, 1], lines[:, :, 2] = end + 1 + first, end + 1 + self.names + last, colon
        lines[:, :, 3:-1], lines[:, :, -1] = 1 + digits, end
        order = np.argsort(np.where(inside(entries, most), picks, np.uint64(2**64 - 1)), axis=1, kind="stable")
        row = np.arange(rows)
        shown = [lines[row, order[:, place]] for place in range(3)]
        empty = np.full((rows, 1), end)
        tail = np.concatenate([empty, shown[0], shown[1], empty, shown[2][:, :-2]], axis=1)
        inputs = np.zeros((rows, width), np.int64)
        inputs[:, : most * self.line] = lines.reshape(rows, -1)
        book = entries * self.line
        inputs[row[:, None], book[:, None] + np.arange(self._tail)] = tail
        asked = book[:, None] + self._tail - self.digits + np.arange(self.digits)
        targets, mask = np.zeros((rows, width), np.int64), np.zeros((rows, width), bool)
        targets[row[:, None], asked], mask[row[:, None], asked] = shown[2][:, 3:-1], True
        return inputs, targets, mask


_FILLER = b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


@dataclass(frozen=True)
class Needle(Task):
    """Filler text with needles KEY=digits in it, and KEY? at its end: the digits that belong to the key.

    The filler is that of RULER's noise haystacks (arXiv 2404.06654, niah.py at c3f5e3b), over and over; the needle is
    shorter than RULER's sentence, so that rows of some 100 bytes have one. Tokens are bytes of ASCII. A needle stands
    behind any character of the filler, each with the same probability; keys of a row are different. The digits of the
    answer are written into the row, behind where they are asked for. Right are whole numbers.
    """

    needles: PositiveInt = 1
    """The first one drawn is asked for."""
    letters: PositiveInt = 3
    """Of a key."""
    digits: PositiveInt = 7

    question: ClassVar[str] = "the digits that belong to a key in filler text"
    source: ClassVar[str] = "after RULER, arXiv 2404.06654, with needles of a few bytes"
    right: ClassVar[Literal["token", "sequence"]] = "sequence"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.letters > 4:
            raise ConfigError(f"Needle.letters is {self.letters}, but must be at most 4")
        if self.needles > 26**self.letters:
            raise ConfigError(f"Needle.needles is {self.needles}, but there are {26**self.letters} keys")

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(map(chr, range(128)))

    @property
    def chance(self) -> float:
        return 10.0**-self.digits

    @property
    def _needle(self) -> int:
        return self.letters + self.digits + 2  # with "=" and a blank

    @property
    def _tail(self) -> int:
        return self.letters + 1 + self.digits - 1

    def possible(self, high: int) -> np.ndarray:
        return np.arange(self.needles * self._needle + self._tail, high + 1)

    def _possible_in_words(self) -> str:
        return f"lengths from {self.needles * self._needle + self._tail}"

    def max_targets(self, length: int) -> int:
        return self.digits

    def words(self, length: int) -> int:
        return self.needles * (2 + self.digits)

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        rows, count, size = len(words), self.needles, self._needle
        row = np.arange(rows)[:, None]
        places, keys, numbers = np.split(words, [count, 2 * count], axis=1)
        needles = np.empty((rows, count, size), np.int64)
        names = distinct(keys, 26**self.letters)
        for letter in range(self.letters):
            needles[:, :, letter] = ord("A") + names // 26**letter % 26
        needles[:, :, self.letters], needles[:, :, -1] = ord("="), ord(" ")
        needles[:, :, self.letters + 1 : -1] = ord("0") + below(numbers, 10).reshape(rows, count, self.digits)
        filler = lengths - count * size - self._tail
        depths = below(places, filler[:, None] + 1)
        rank = np.argsort(np.argsort(depths, axis=1, kind="stable"), axis=1, kind="stable")
        starts = (depths + rank * size)[:, :, None] + np.arange(size)
        inputs, free = np.full((rows, width), PAD, np.int64), np.ones((rows, width), bool)
        free[row[:, :, None], starts] = False
        text = np.frombuffer(_FILLER, np.uint8).astype(np.int64)
        inputs = text[(np.cumsum(free, axis=1) - 1) % len(text)]
        inputs[row[:, :, None], starts] = needles
        end = (lengths - self._tail)[:, None]
        asked = needles[:, 0]
        tail = np.concatenate(
            [asked[:, : self.letters], np.full((rows, 1), ord("?")), asked[:, self.letters + 1 : -2]], 1
        )
        inputs[row, end + np.arange(self._tail)] = tail
        targets, mask = np.zeros((rows, width), np.int64), np.zeros((rows, width), bool)
        at = end + self.letters + np.arange(self.digits)
        targets[row, at], mask[row, at] = asked[:, self.letters + 1 : -1], True
        return inputs, targets, mask


@dataclass(frozen=True)
class NearestNeighbour(Task):
    """A direction, then directions with a value each: the value of the one that is nearest to the first.

    The xLSTM paper's test of revised decisions (arXiv 2405.04517, figure 2): unit vectors in the plane and values in
    [0, 1], of which the model makes a number, scored by its squared error. Here directions are `angles` tokens around a
    circle and values `values` tokens, all uniform, and the answer, at the row's end, is a token: its accuracy has no
    published figure. Of directions that are equally near the first one counts.
    """

    angles: PositiveInt = 64
    values: PositiveInt = 16

    question: ClassVar[str] = "the value of the direction nearest to the first one"
    source: ClassVar[str] = "after xLSTM, arXiv 2405.04517, figure 2, in tokens"

    @property
    def symbols(self) -> tuple[str, ...]:
        return (
            "[PAD]",
            *(f"angle{number}" for number in range(self.angles)),
            *(f"value{number}" for number in range(self.values)),
        )

    @property
    def chance(self) -> float:
        return 1 / self.values

    def possible(self, high: int) -> np.ndarray:
        return np.arange(3, high + 1, 2)

    def _possible_in_words(self) -> str:
        return "odd lengths from 3"

    def max_targets(self, length: int) -> int:
        return 1

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        angles, values = below(words, self.angles), below(words, self.values)
        place = np.arange(width)
        inputs = np.where((place == 0) | (place % 2 == 1), 1 + angles, 1 + self.angles + values)
        apart = np.abs(angles - angles[:, :1])
        apart = np.minimum(apart, self.angles - apart)
        seen = (place % 2 == 1) & (place < lengths[:, None])
        nearest = np.argmin(np.where(seen, apart, self.angles), axis=1)
        answers = np.take_along_axis(inputs, nearest[:, None] + 1, axis=1)
        return inputs, np.broadcast_to(answers, inputs.shape), place == lengths[:, None] - 1
