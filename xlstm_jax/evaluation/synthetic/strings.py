"""What a string is to be answered with: itself, reversed, sorted, its set, a stack; and what is missing in its copy.

A row of 2 n positions is a string of n symbols, [ACT] and n - 1 times [PAD]; the answer is read from [ACT] on, a token
a position, and is not fed back. That is how SLiCE (arXiv 2505.17761) and the xLSTM paper (arXiv 2405.04517, B.1.1) lay
out their rows; the paper's lengths count the last answer too, which makes its rows a position shorter. Where their
sizes differ, each docstring says whose is which. Accuracy counts tokens, as in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xlstm_jax.config import PositiveInt
from xlstm_jax.evaluation.synthetic.task import PAD, Drawn, Task, Words, below, inside, place_answers

_SOURCE = "Deletang et al., arXiv 2207.02098; xLSTM, arXiv 2405.04517, B.1.1"


@dataclass(frozen=True)
class _OfStrings(Task):
    alphabet: PositiveInt = 10
    """Symbols that strings are drawn from, uniformly."""

    source: ClassVar[str] = _SOURCE
    mark: ClassVar[str] = "[ACT]"
    """The symbol of the vocabulary that is none of a string's."""

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("[PAD]", *map(str, range(1, self.alphabet + 1)), self.mark)

    @property
    def chance(self) -> float:
        return 1 / self.alphabet

    def possible(self, high: int) -> np.ndarray:
        return np.arange(2, high + 1, 2)

    def _possible_in_words(self) -> str:
        return "even lengths from 2"


@dataclass(frozen=True)
class _Transduction(_OfStrings):
    def max_targets(self, length: int) -> int:
        return length // 2

    def transduce(self, string: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(answers (rows, at least the string), their numbers) of strings (rows, n) of these sizes."""
        raise NotImplementedError

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        sizes = lengths // 2
        string = np.where(inside(sizes, width), 1 + below(words, self.alphabet), PAD)
        answers, counts = self.transduce(string[:, : width // 2], sizes)
        return self._with_act(string, sizes), *place_answers(answers, counts, sizes, width)

    def _with_act(self, string: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        string[np.arange(len(string)), sizes] = self.symbols.index(self.mark)
        return string


@dataclass(frozen=True)
class ReverseString(_Transduction):
    """The string from its end to its start; 10 symbols in the xLSTM paper, 2 in SLiCE."""

    question: ClassVar[str] = "the string, backwards"

    def transduce(self, string: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        back = np.maximum(sizes[:, None] - 1 - np.arange(string.shape[1]), 0)
        return np.take_along_axis(string, back, axis=1), sizes


@dataclass(frozen=True)
class Repetition(_Transduction):
    """The string once more (Deletang et al.: duplicate string); 10 symbols in the xLSTM paper.

    SLiCE has it with 10 and, as duplicate_string, with 2.
    """

    question: ClassVar[str] = "the string once more"

    def transduce(self, string: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return string, sizes


@dataclass(frozen=True)
class OddsFirst(_Transduction):
    """The symbols at the odd places, counted from 1, then those at the even ones; 10 symbols, 2 in SLiCE.

    Deletang et al.'s code counts from 0, and so says the other half first.
    """

    question: ClassVar[str] = "the 1st, 3rd, 5th ... symbol, then the 2nd, 4th ..."

    def transduce(self, string: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place, odds = np.arange(string.shape[1]), (sizes[:, None] + 1) // 2
        order = np.where(place < odds, 2 * place, 2 * (place - odds) + 1)
        return np.take_along_axis(string, np.clip(order, 0, string.shape[1] - 1), axis=1), sizes


@dataclass(frozen=True)
class BucketSort(_Transduction):
    """The symbols in ascending order; 10 in the xLSTM paper, 5 in SLiCE.

    The paper's vocabulary of 11 has no room for [ACT]: without `act` rows have 2 n - 1 positions, and the answer is
    read from the last symbol on.
    """

    act: bool = False

    question: ClassVar[str] = "the symbols, sorted"

    @property
    def symbols(self) -> tuple[str, ...]:
        return super().symbols if self.act else super().symbols[:-1]

    def possible(self, high: int) -> np.ndarray:
        return super().possible(high) if self.act else np.arange(1, high + 1, 2)

    def _possible_in_words(self) -> str:
        return super()._possible_in_words() if self.act else "odd lengths from 1"

    def max_targets(self, length: int) -> int:
        return length // 2 if self.act else (length + 1) // 2

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        sizes = lengths // 2 if self.act else (lengths + 1) // 2
        own = inside(sizes, width)
        string = np.where(own, 1 + below(words, self.alphabet), PAD)
        answers = np.sort(np.where(own, string, self.alphabet + 1), axis=1)
        targets, mask = place_answers(answers, sizes, sizes if self.act else sizes - 1, width)
        return self._with_act(string, sizes) if self.act else string, targets, mask


@dataclass(frozen=True)
class Set(_Transduction):
    """The different symbols of the string, in the order in which they first occur; 126 symbols."""

    alphabet: PositiveInt = 126

    question: ClassVar[str] = "each symbol once, as they first occur"

    def transduce(self, string: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = inside(sizes, string.shape[1])
        order = np.argsort(np.where(own, string, self.alphabet + 1), axis=1, kind="stable")
        in_order = np.take_along_axis(string, order, axis=1)
        new = np.ones_like(own)
        new[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
        first = np.zeros_like(own)
        np.put_along_axis(first, order, new, axis=1)
        first &= own
        kept = np.argsort(~first, axis=1, kind="stable")
        return np.take_along_axis(string, kept, axis=1), first.sum(axis=1)


@dataclass(frozen=True)
class MissingDuplicate(_OfStrings):
    """A string twice, one symbol of its second copy replaced by [MIS]: which one? 9 symbols; chance 1/9.

    The xLSTM paper asks at the row's end; SLiCE, `at_place`, where [MIS] stands.
    """

    alphabet: PositiveInt = 9
    at_place: bool = False

    question: ClassVar[str] = "the symbol that is missing in the second copy"
    mark: ClassVar[str] = "[MIS]"

    def max_targets(self, length: int) -> int:
        return 1

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        sizes, row, place = lengths // 2, np.arange(len(words)), np.arange(width)
        # A row of n symbols leaves its last random number over.
        missing = sizes + below(words[row, lengths - 1], sizes)
        string = 1 + below(words, self.alphabet)
        inputs = np.take_along_axis(string, place % sizes[:, None], axis=1)
        answers = inputs[row, missing]
        inputs[row, missing] = self.symbols.index(self.mark)
        asked = missing if self.at_place else lengths - 1
        return inputs, np.broadcast_to(answers[:, None], inputs.shape), place == asked[:, None]


@dataclass(frozen=True)
class StackManipulation(_Transduction):
    """A stack, bottom first, and pushes and pops on it; the answer is the stack that they leave, bottom first.

    The stack has U{1 .. n} of the row's n tokens; each of the others is POP or a push of one of the symbols, all with
    the same probability. POP of an empty stack does nothing. 4 symbols in the xLSTM paper; SLiCE has 2 and ends the
    answer, where it is shorter than n, by [EMPTY]. (Deletang et al. say the stack from its top.)
    """

    alphabet: PositiveInt = 4
    empty: bool = False

    question: ClassVar[str] = "the stack, from its bottom"

    @property
    def symbols(self) -> tuple[str, ...]:
        kinds = (f"{kind}{symbol}" for kind in ("ST", "PS") for symbol in range(1, self.alphabet + 1))
        return ("[PAD]", *kinds, "POP", "[ACT]", *(("[EMPTY]",) if self.empty else ()))

    def words(self, length: int) -> int:
        return 1 + length // 2

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        sizes, count = lengths // 2, width // 2
        given = 1 + below(words[:, 0], sizes)
        pushed = below(words[:, 1:], self.alphabet + 1)  # 0 for POP
        started = 1 + below(words[:, 1:], self.alphabet)
        row = np.arange(len(words))
        stack, depth = np.zeros((len(words), count + 1), np.int64), np.zeros(len(words), np.int64)
        inputs = np.zeros((len(words), width), np.int64)
        for place in range(count):
            start, there = place < given, place < sizes
            symbol = np.where(start, started[:, place], pushed[:, place])
            operation = np.where(symbol == 0, self.symbols.index("POP"), self.alphabet + symbol)
            inputs[:, place] = np.where(there, np.where(start, symbol, operation), PAD)
            push = there & (symbol > 0)
            stack[row[push], depth[push]] = symbol[push]
            depth = np.where(push, depth + 1, np.where(there, np.maximum(depth - 1, 0), depth))
        counts = depth
        if self.empty:
            stack[row, depth] = self.symbols.index("[EMPTY]")
            counts = np.minimum(depth + 1, sizes)
        return self._with_act(inputs, sizes), *place_answers(stack, counts, sizes, width)
