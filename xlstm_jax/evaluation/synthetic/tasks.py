"""Regular languages as endless, seeded rows: parity, even pairs, cycle navigation, modular arithmetic.

The definitions are those of Deletang et al. (Neural Networks and the Chomsky Hierarchy, arXiv 2207.02098), with the
vocabularies of the xLSTM paper (arXiv 2405.04517, appendix B.1.1). A model reads a row and says the answer, one token
of its vocabulary, at the row's last token. Symbols are drawn uniformly, which makes the answers of a task as good as
equally frequent at every length but the shortest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from xlstm_jax.config import ConfigError, near_miss

PAD = 0
"""The token after a row's end, in every task."""

MODULUS = 5
"""Positions of the cycle, and the modulus of the arithmetic."""

Stream = Literal["train", "validation", "test"]
_STREAMS: tuple[Stream, ...] = ("train", "validation", "test")
_WORDS_PER_COUNT = 4  # what Philox 4x64 makes of one value of its counter


class Rows(NamedTuple):
    """Rows of a task, padded at their right end."""

    tokens: Int[np.ndarray, "rows seq"]
    lengths: Int[np.ndarray, " rows"]
    """Tokens of each row before its padding."""
    answers: Int[np.ndarray, " rows"]
    """The token to say at the last position."""


Draw = Callable[[UInt64[np.ndarray, "rows seq"], Int[np.ndarray, " rows"]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """One formal language."""

    name: str
    question: str
    """What is asked of a row."""
    symbols: tuple[str, ...]
    """The vocabulary: how each token is written."""
    first_answer: int
    """The token of the first class of answers; the others follow it."""
    classes: int
    draw: Draw
    """Random words and lengths -> tokens, right up to a row's length, and the class of its answer."""
    shortest: int = 2
    length_multiple: int = 1
    """Lengths of rows are multiples of this."""

    @property
    def vocab_size(self) -> int:
        return len(self.symbols)

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / self.classes

    def scaled(self, accuracy: float) -> float:
        """Accuracy on a scale from 0 for guessing to 1 (xLSTM paper, B.1.1)."""
        return (accuracy - self.chance) / (1 - self.chance)

    def lengths(self, low: int, high: int) -> Int[np.ndarray, " lengths"]:
        """The possible lengths from `low` to `high`.

        Raises:
            ConfigError: if there are none.
        """
        possible = np.arange(max(low, self.shortest), high + 1)
        possible = possible[possible % self.length_multiple == 0]
        if not len(possible):
            even = " even" if self.length_multiple == 2 else ""
            raise ConfigError(
                f"rows of {self.name} have{even} lengths from {self.shortest}, but {low} to {high} were asked for"
            )
        return possible

    def rows(self, seed: int, stream: Stream, start: int, count: int, low: int, high: int) -> Rows:
        """Rows `start` to `start + count` of a stream that never ends.

        A row follows from task, seed, stream, range of lengths and its number alone (a counter-based generator,
        Philox), whatever was asked for before.

        Args:
            seed: a whole number from 0.
            stream: rows of two streams have nothing to do with each other.
            low, high: the shortest and the greatest length, which is also the width of the array.
        """
        possible = self.lengths(low, high)
        counts_per_row = -(-(high + 1) // _WORDS_PER_COUNT)
        philox = np.random.Philox(
            key=np.array([seed, _STREAMS.index(stream)], np.uint64), counter=start * counts_per_row
        )
        words = philox.random_raw(count * counts_per_row * _WORDS_PER_COUNT).reshape(count, -1)
        lengths = possible[words[:, 0] % len(possible)]
        tokens, classes = self.draw(words[:, 1 : high + 1], lengths)
        return Rows(
            np.where(_inside(lengths, high), tokens, PAD).astype(np.int32),
            lengths.astype(np.int32),
            (self.first_answer + classes).astype(np.int32),
        )


def _inside(lengths: np.ndarray, width: int) -> Bool[np.ndarray, "rows seq"]:
    return np.arange(width) < lengths[:, None]


def _parity(words: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bits = words % 2
    ones = np.sum(bits, axis=1, where=_inside(lengths, bits.shape[1]))
    return 1 + bits, ones % 2


def _even_pairs(words: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    letters = words % 2
    first, last = letters[:, 0], letters[np.arange(len(letters)), lengths - 1]
    # ab and ba take turns: their number is even if and only if the row ends as it began.
    return 1 + letters, first ^ last


def _cycle_nav(words: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    moves = (words % 3).astype(np.int64)
    steps = np.array([0, 1, -1])[moves]
    return 1 + moves, np.sum(steps, axis=1, where=_inside(lengths, moves.shape[1])) % MODULUS


def _mod_arith(words: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, width = words.shape
    numbers = (words[:, 0::2] % MODULUS).astype(np.int64)
    operators = (words[:, 1::2] % 3).astype(np.int64)
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


_NUMBERS = tuple(map(str, range(MODULUS)))

TASKS = {
    task.name: task
    for task in (
        Task("parity", "whether the number of ones is odd", ("[PAD]", "0", "1"), 1, 2, _parity, shortest=1),
        Task("even_pairs", "whether the number of ab and ba is odd", ("[PAD]", "a", "b"), 1, 2, _even_pairs),
        Task(
            "cycle_nav",
            f"where on a cycle of {MODULUS} the moves end, from 0",
            ("[PAD]", "stay", "+1", "-1", *_NUMBERS),
            4,
            MODULUS,
            _cycle_nav,
        ),
        Task(
            "mod_arith",
            f"the value modulo {MODULUS}, products before sums, no brackets",
            ("[PAD]", "+", "-", "*", "=", *_NUMBERS),
            5,
            MODULUS,
            _mod_arith,
            length_multiple=2,
        ),
    )
}


_IN_FULL = {"cycle_navigation": "cycle_nav", "modular_arithmetic": "mod_arith"}


def get_task(name: str) -> Task:
    """The task of that name, also as the papers write it: `cycle navigation`, `even-pairs`.

    Raises:
        ConfigError: for a name that no task has.
    """
    spelt = name.strip().lower().replace("-", "_").replace(" ", "_")
    spelt = _IN_FULL.get(spelt, spelt)
    if spelt in TASKS:
        return TASKS[spelt]
    raise ConfigError(f"task is {name!r}, but must be one of {', '.join(TASKS)}{near_miss(spelt, TASKS)}")
