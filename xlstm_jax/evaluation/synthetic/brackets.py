"""Arithmetic in brackets, modulo 5: its value, and the digit that is missing in an equation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xlstm_jax.config import ConfigError
from xlstm_jax.evaluation.synthetic.regular import MODULUS, NUMBERS
from xlstm_jax.evaluation.synthetic.task import AnswerAtEnd, Words, below

OPERATORS = "+-*"
_SYMBOLS = ("[PAD]", *OPERATORS, "(", ")", "=", *NUMBERS)
_MINUS, _OPEN, _CLOSE, _EQUALS, _ZERO = 2, 4, 5, 6, 7
_LEAF = 4
"""Tokens of the longest expression without an operator between two others: (-d)."""


@dataclass(frozen=True)
class _Bracketed(AnswerAtEnd):
    operators: str = OPERATORS
    """What an operator is drawn from, uniformly; one that stands here twice is drawn twice as often."""

    first_answer: ClassVar[int] = _ZERO
    classes: ClassVar[int] = MODULUS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.operators or set(self.operators) - set(OPERATORS):
            raise ConfigError(
                f"{type(self).__name__}.operators is {self.operators!r}, but must be made of {', '.join(OPERATORS)}"
            )

    def _expressions(self, words: Words, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (rows, seq) of random expressions of these sizes, and their values.

        One of n >= 5 tokens is (L op R) with a left side of U{1 .. n - 4} tokens; those of 1 to 4 are d, -d, (d), (-d).
        All expressions of one depth are made at once. Each random number decides on the token at its own position.
        """
        tokens, values = np.zeros(words.shape, np.int64), np.zeros(words.shape, np.int64)
        drawn_from = np.array([OPERATORS.index(operator) for operator in self.operators])
        row, start, size = np.arange(len(words)), np.zeros(len(words), np.int64), sizes
        depths = []
        while len(row):
            leaf = size <= _LEAF
            r, s, n = row[leaf], start[leaf], size[leaf]
            brackets, minus = n >= 3, n % 2 == 0
            at = s + brackets + minus
            digit = below(words[r, at], MODULUS)
            tokens[r, at] = _ZERO + digit
            tokens[r[minus], at[minus] - 1] = _MINUS
            tokens[r[brackets], s[brackets]] = _OPEN
            tokens[r[brackets], (s + n)[brackets] - 1] = _CLOSE
            values[r, s] = np.where(minus, -digit, digit) % MODULUS
            r, s, n = row[~leaf], start[~leaf], size[~leaf]
            left = 1 + below(words[r, s], n - _LEAF)
            at = s + 1 + left
            operator = drawn_from[below(words[r, at], len(drawn_from))]
            tokens[r, s], tokens[r, at], tokens[r, s + n - 1] = _OPEN, 1 + operator, _CLOSE
            depths.append((r, s, at, operator))
            row, start, size = (np.concatenate(pair) for pair in ((r, r), (s + 1, at + 1), (left, n - left - 3)))
        for r, s, at, operator in reversed(depths):
            one, other = values[r, s + 1], values[r, at + 1]
            values[r, s] = np.choose(operator, (one + other, one - other, one * other)) % MODULUS
        return tokens, values[:, 0]


@dataclass(frozen=True)
class BracketedArithmetic(_Bracketed):
    """A random expression in brackets and =; the answer is its value modulo 5.

    Operators: the xLSTM paper's vocabulary has +, - and *; SLiCE (data_dir/fl_tasks/mod_arith_w_brack.py) draws * half
    of the time, "+-**", and its lengths do not count =; Deletang et al.'s default is "+-". Chance 1/5.
    """

    question: ClassVar[str] = f"the value modulo {MODULUS} of an expression in brackets"
    source: ClassVar[str] = "Deletang et al., arXiv 2207.02098; xLSTM, arXiv 2405.04517, B.1.1"

    @property
    def symbols(self) -> tuple[str, ...]:
        return _SYMBOLS

    def answer(self, words: Words, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens, values = self._expressions(words, lengths - 1)
        tokens[np.arange(len(words)), lengths - 1] = _EQUALS
        return tokens, values


@dataclass(frozen=True)
class SolveEquation(_Bracketed):
    """A random expression in brackets with x for one of its digits, =, its value and [ACT]; the answer is the digit.

    With + and - alone, as in Deletang et al., it can be told from the row in every case. SLiCE
    (data_dir/fl_tasks/solve_equation.py) has * too, "+-**", where a factor of 0 hides it: then less than all can be
    right. Chance 1/5.
    """

    operators: str = "+-"

    question: ClassVar[str] = "the digit that x stands for"
    source: ClassVar[str] = "Deletang et al., arXiv 2207.02098; xLSTM, arXiv 2405.04517, B.1.1"
    shortest: ClassVar[int] = 4

    @property
    def symbols(self) -> tuple[str, ...]:
        return (*_SYMBOLS, "x", "[ACT]")

    def words(self, length: int) -> int:
        return 2 * length

    def answer(self, words: Words, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width = words.shape[1] // 2
        tokens, values = self._expressions(words[:, :width], lengths - 3)
        row = np.arange(len(words))
        # Of the digits the one with the greatest random number.
        hidden = np.argmax(np.where(tokens >= _ZERO, words[:, width:], np.uint64(0)), axis=1)
        digits = tokens[row, hidden] - _ZERO
        tokens[row, hidden] = self.symbols.index("x")
        tokens[row, lengths - 3] = _EQUALS
        tokens[row, lengths - 2] = _ZERO + values
        tokens[row, lengths - 1] = self.symbols.index("[ACT]")
        return tokens, digits
