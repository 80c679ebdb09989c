"""What a synthetic task is: endless, seeded rows with targets at any of their positions.

A model reads the inputs of a row and says, at every position that has a target, that token. Nothing that it says is
fed back; where an answer of several tokens is read token by token, the task itself writes the earlier ones into the
inputs (and its docstring says so).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from xlstm_jax.config import Config, ConfigError

PAD = 0
"""The token after a row's end; some tasks have it inside of rows too, where there is nothing to read."""

Stream = Literal["train", "validation", "test"]
_STREAMS: tuple[Stream, ...] = ("train", "validation", "test")
_WORDS_PER_COUNT = 4  # what Philox 4x64 makes of one value of its counter

Words = UInt64[np.ndarray, "rows words"]
"""Random numbers, uniform over 64 bits, from which a task makes its rows."""

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Inputs, targets and mask, each (rows, seq); anything may stand behind a row's end."""


class Asked(NamedTuple):
    """The targets of rows, gathered: as many a row as the task has at most, the first ones real."""

    positions: Int[np.ndarray, "rows targets"]
    """Where each is to be said."""
    targets: Int[np.ndarray, "rows targets"]
    mask: Bool[np.ndarray, "rows targets"]
    """False where a row has no more."""


class Rows(NamedTuple):
    """Rows of a task, padded at their right end."""

    inputs: Int[np.ndarray, "rows seq"]
    targets: Int[np.ndarray, "rows seq"]
    """The token to say at a position; 0 where none is asked for."""
    mask: Bool[np.ndarray, "rows seq"]
    """Where a target is asked for."""
    lengths: Int[np.ndarray, " rows"]
    """Positions of each row before its padding."""

    def part(self, start: int, count: int) -> Rows:
        """`count` rows from `start` on."""
        return Rows(*(array[start : start + count] for array in self))

    def asked(self, width: int) -> Asked:
        """The targets alone, `width` a row (see `Task.max_targets`).

        Raises:
            ValueError: if a row has more.
        """
        most = int(self.mask.sum(axis=1).max(initial=0))
        if most > width:
            raise ValueError(f"a row has {most} targets, but at most {width} were announced")
        positions = np.argsort(~self.mask, axis=1, kind="stable")[:, :width].astype(np.int32)
        return Asked(
            positions,
            np.take_along_axis(self.targets, positions, axis=1),
            np.take_along_axis(self.mask, positions, axis=1),
        )


@dataclass(frozen=True)
class Task(Config):
    """A task and its sizes; subclasses say how rows are made of random numbers.

    Raises:
        ConfigError: for sizes that cannot be, with the field's name.
    """

    name: str

    question: ClassVar[str]
    """What is asked of a row."""
    source: ClassVar[str]
    """The paper or file that defines it."""
    right: ClassVar[Literal["token", "sequence"]] = "token"
    """What counts as right: each target by itself, or a row with all of its targets."""
    by_position: ClassVar[bool] = False
    """Whether accuracy is drawn over the position of a target, and not over the length of its row."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """The vocabulary: how each token is written."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        return len(self.symbols)

    @property
    def chance(self) -> float:
        """Accuracy of guessing, of tokens or of rows as `right` says."""
        raise NotImplementedError

    def scaled(self, accuracy: float) -> float:
        """Accuracy on a scale from 0 for guessing to 1 (xLSTM paper, arXiv 2405.04517, B.1.1)."""
        return (accuracy - self.chance) / (1 - self.chance)

    def possible(self, high: int) -> Int[np.ndarray, " lengths"]:
        """The lengths that rows can have, up to `high`, in ascending order."""
        raise NotImplementedError

    def lengths(self, low: int, high: int) -> Int[np.ndarray, " lengths"]:
        """The possible lengths from `low` to `high`.

        Raises:
            ConfigError: if there are none.
        """
        possible = self.possible(high)
        found = possible[possible >= low]
        if not len(found):
            raise ConfigError(
                f"rows of {self.name} have {self._possible_in_words()}, but {low} to {high} were asked for"
            )
        return found

    def _possible_in_words(self) -> str:
        first = self.possible(1 << 16)[:3]
        return f"lengths {', '.join(map(str, first))} and so on" if len(first) else "no length of up to 65536"

    def max_targets(self, length: int) -> int:
        """The most targets that a row of up to `length` positions has."""
        raise NotImplementedError

    def words(self, length: int) -> int:
        """Random numbers that a row of up to `length` positions is made of."""
        return length

    def draw(self, words: Words, lengths: Int[np.ndarray, " rows"], width: int) -> Drawn:
        """Rows of these lengths, none of them above `width`, from `self.words(width)` random numbers each."""
        raise NotImplementedError

    def rows(self, seed: int, stream: Stream, start: int, count: int, low: int, high: int) -> Rows:
        """Rows `start` to `start + count` of a stream that never ends.

        A row follows from task, seed, stream, range of lengths and its number alone, whatever was asked for before.
        Every row of a stream, and every stream, takes other outputs of a counter-based generator (Philox 4x64), which
        are never the same twice. So rows are independent, and two of them are equal by chance alone: with probability
        a**-n if n symbols of an alphabet of a are drawn uniformly, 1e-12 for 40 bits.

        Args:
            seed: a whole number from 0.
            stream: rows of two streams have nothing to do with each other.
            low, high: the shortest and the greatest length, which is also the width of the arrays.

        Raises:
            ConfigError: if no row of the task has such a length.
        """
        possible = self.lengths(low, high)
        own = self.words(high)
        counts_per_row = -(-(own + 1) // _WORDS_PER_COUNT)
        philox = np.random.Philox(
            key=np.array([seed, _STREAMS.index(stream)], np.uint64), counter=start * counts_per_row
        )
        words = philox.random_raw(count * counts_per_row * _WORDS_PER_COUNT).reshape(count, -1)
        lengths = possible[below(words[:, 0], len(possible))]
        inputs, targets, mask = self.draw(words[:, 1 : own + 1], lengths, high)
        mask = mask & inside(lengths, high)
        return Rows(
            np.where(inside(lengths, high), inputs, PAD).astype(np.int32),
            np.where(mask, targets, 0).astype(np.int32),
            mask,
            lengths.astype(np.int32),
        )


@dataclass(frozen=True)
class AnswerAtEnd(Task):
    """A task whose only target stands at the last position of a row: one of `classes` tokens from `first_answer` on."""

    first_answer: ClassVar[int]
    classes: ClassVar[int]
    shortest: ClassVar[int] = 2
    length_multiple: ClassVar[int] = 1

    @property
    def chance(self) -> float:
        return 1 / self.classes

    def possible(self, high: int) -> np.ndarray:
        lengths = np.arange(self.shortest, high + 1)
        return lengths[lengths % self.length_multiple == 0]

    def _possible_in_words(self) -> str:
        return f"{'even ' if self.length_multiple == 2 else ''}lengths from {self.shortest}"

    def max_targets(self, length: int) -> int:
        return 1

    def answer(self, words: Words, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (rows, seq) and the class of each row's answer."""
        raise NotImplementedError

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        inputs, classes = self.answer(words, lengths)
        at_end = np.arange(width) == lengths[:, None] - 1
        return inputs, np.broadcast_to((self.first_answer + classes)[:, None], inputs.shape), at_end


def inside(lengths: np.ndarray, width: int) -> Bool[np.ndarray, "rows seq"]:
    """True at the positions before each row's end."""
    return np.arange(width) < lengths[:, None]


def below(words: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to below `bound`; uniform but for a part in 2**64 / bound."""
    return (words % np.asarray(bound, np.uint64)).astype(np.int64)


def unit(words: np.ndarray) -> np.ndarray:
    """Numbers between 0 and 1, neither included."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def distinct(words: Words, bound: int) -> Int[np.ndarray, "rows words"]:
    """As many different numbers from 0 to below `bound` as there are words in a row, uniform, in random order."""
    rows, count = words.shape
    drawn, places = np.empty((2, rows, count), np.int64)
    moved = np.empty_like(drawn)
    row = np.arange(rows)

    def at(place: np.ndarray, step: int) -> np.ndarray:
        """What stands at a place after so many steps: the number moved there last, or that of the place itself."""
        there = places[:, :step] == place[:, None]
        last = np.where(there, np.arange(1, step + 1), 0).max(axis=1, initial=0)
        return np.where(last > 0, moved[row, np.maximum(last - 1, 0)], place)

    # Fisher and Yates's shuffle of all numbers, of which only the places that were touched are held.
    for step in range(count):
        places_now = step + below(words[:, step], bound - step)
        drawn[:, step] = at(places_now, step)
        moved[:, step] = at(np.full(rows, step), step)
        places[:, step] = places_now
    return drawn


def place_answers(
    answers: np.ndarray, counts: np.ndarray, first: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Targets and mask (rows, width): the first `counts` of a row's answers from the position `first` on."""
    place = np.arange(width) - first[:, None]
    mask = (place >= 0) & (place < counts[:, None])
    targets = np.take_along_axis(answers, np.clip(place, 0, answers.shape[1] - 1), axis=1)
    return targets, mask
