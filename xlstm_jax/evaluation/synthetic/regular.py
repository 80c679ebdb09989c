"""Regular languages: parity, even pairs, cycle navigation, modular arithmetic without brackets.

The definitions are those of Deletang et al. (Neural Networks and the Chomsky Hierarchy, arXiv 2207.02098), with the
vocabularies of the xLSTM paper (arXiv 2405.04517, appendix B.1.1); SLiCE (arXiv 2505.17761) has the same ones. Symbols
are drawn uniformly, which makes the answers of a task as good as equally frequent at every length but the shortest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xlstm_jax.evaluation.synthetic.task import AnswerAtEnd, Words, below, inside

MODULUS = 5
"""Positions of the cycle, and the modulus of the arithmetic."""

NUMBERS = tuple(map(str, range(MODULUS)))

_SOURCE = "Deletang et al., arXiv 2207.02098; xLSTM, arXiv 2405.04517, B.1.1"


@dataclass(frozen=True)
class Parity(AnswerAtEnd):
    """Uniform bits; the answer is their sum modulo 2."""

    question: ClassVar[str] = "whether the number of ones is odd"
    source: ClassVar[str] = _SOURCE
    first_answer: ClassVar[int] = 1
    classes: ClassVar[int] = 2
    shortest: ClassVar[int] = 1

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("[PAD]", "0", "1")

    def answer(self, words: Words, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bits = below(words, 2)
        ones = np.sum(bits, axis=1, where=inside(lengths, bits.shape[1]))
        return 1 + bits, ones % 2


@dataclass(frozen=True)
class EvenPairs(AnswerAtEnd):
    """Uniform letters a and b; the answer is a if the number of ab and ba is even."""

    question: ClassVar[str] = "whether the number of ab and ba is odd"
    source: ClassVar[str] = _SOURCE
    first_answer: ClassVar[int] = 1
    classes: ClassVar[int] = 2

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("[PAD]", "a", "b")

    def answer(self, words: Words, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        letters = below(words, 2)
        first, last = letters[:, 0], letters[np.arange(len(letters)), lengths - 1]
        # ab and ba take turns: their number is even if and only if the row ends as it began.
        return 1 + letters, first ^ last


@dataclass(frozen=True)
class CycleNavigation(AnswerAtEnd):
    """Uniform moves stay, +1, -1 on a cycle of five positions, from 0; the answer is where they end."""

    question: ClassVar[str] = f"where on a cycle of {MODULUS} the moves end, from 0"
    source: ClassVar[str] = _SOURCE
    first_answer: ClassVar[int] = 4
    classes: ClassVar[int] = MODULUS

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("[PAD]", "stay", "+1", "-1", *NUMBERS)

    def answer(self, words: Words, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moves = below(words, 3)
        steps = np.array([0, 1, -1])[moves]
        return 1 + moves, np.sum(steps, axis=1, where=inside(lengths, moves.shape[1])) % MODULUS


@dataclass(frozen=True)
class ModularArithmetic(AnswerAtEnd):
    """Uniform numbers modulo 5 and operators +, -, * by turns, then =; the answer is the value, products first."""

    question: ClassVar[str] = f"the value modulo {MODULUS}, products before sums, no brackets"
    source: ClassVar[str] = _SOURCE
    first_answer: ClassVar[int] = 5
    classes: ClassVar[int] = MODULUS
    length_multiple: ClassVar[int] = 2

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("[PAD]", "+", "-", "*", "=", *NUMBERS)

    def answer(self, words: Words, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, width = words.shape
        numbers, operators = below(words[:, 0::2], MODULUS), below(words[:, 1::2], 3)
        tokens = np.empty((rows, width), np.int64)
        tokens[:, 0::2], tokens[:, 1::2] = 5 + numbers, 1 + operators
        tokens[np.arange(rows), lengths - 1] = 4
        total, product = np.zeros(rows, np.int64), numbers[:, 0]
        for place in range(1, numbers.shape[1]):
            operator, number = operators[:, place - 1], numbers[:, place]
            times = operator == 2
            # A sum takes in a product when the operator after it is known not to be another multiplication.
            after_total = np.where(times, total, total + product)
            after_product = np.where(times, product * number, np.where(operator == 1, -number, number)) % MODULUS
            more = 2 * place + 1 < lengths
            total, product = np.where(more, after_total, total), np.where(more, after_product, product)
        return tokens, (total + product) % MODULUS
