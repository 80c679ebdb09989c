"""Multi-query associative recall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from xlstm_jax.config import ConfigError, PositiveFloat, PositiveInt
from xlstm_jax.evaluation.synthetic.task import Drawn, Task, Words, below, distinct, unit


@dataclass(frozen=True)
class MQAR(Task):
    """Pairs of a key and a value, then the keys once more, each to be answered with its value.

    Arora et al. (Zoology, arXiv 2312.04927), to the letter of zoology/data/multiquery_ar.py at dbcb60d. With V tokens,
    K pairs and P passes a row of T positions is

    * k1 v1 ... kK vK, P times: keys from 1 to V/2 - 1 and values from V/2 to V - 1, each uniform without replacement;
    * (T - 2 K P) / 2 slots of two positions, of which K are drawn one after another, without replacement, with weights
      (g + 1)^(a - 1) for slot g; at the first position of the j-th drawn one stands key j, whose target, at the same
      position, is value j. All else is 0 or, with `random_non_queries`, any token.

    Values are not written where they are asked for. Accuracy counts queries; `chance` is that of naming any value. Who
    knows the values of the row but not whose they are has 1/K, which is where models stay for a while.
    """

    vocab_size: PositiveInt = 8192
    """Tokens, an even number. The papers say that small vocabularies tell models apart less well."""
    pairs: PositiveInt = 4
    power: PositiveFloat = 0.01
    """a in the weights of the slots; 1 makes them uniform."""
    passes: PositiveInt = 1
    random_non_queries: bool = True
    """Zoology's default; off in its figure 2 and in the xLSTM paper."""

    question: ClassVar[str] = "the values of keys that were read before"
    source: ClassVar[str] = "Arora et al., arXiv 2312.04927; zoology/data/multiquery_ar.py at dbcb60d"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size % 2:
            raise ConfigError(f"MQAR.vocab_size is {self.vocab_size}, but must be even")
        if self.pairs > self.vocab_size // 2 - 1:
            raise ConfigError(
                f"MQAR.pairs is {self.pairs}, but a vocabulary of {self.vocab_size} has {self.vocab_size // 2 - 1} keys"
            )

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.vocab_size)))

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size // 2)

    @property
    def context(self) -> int:
        """Positions of the pairs."""
        return 2 * self.pairs * self.passes

    def possible(self, high: int) -> np.ndarray:
        first = self.context + 2 * self.pairs
        return np.arange(first, min(high, self.vocab_size - 1) + 1, 2)

    def _possible_in_words(self) -> str:
        return (
            f"even lengths from {self.context + 2 * self.pairs}, which its pairs and queries need, to below its "
            f"vocab_size = {self.vocab_size}"
        )

    def max_targets(self, length: int) -> int:
        return self.pairs

    def words(self, length: int) -> int:
        return 2 * self.pairs + self.slots(length) + length

    def slots(self, length: Any) -> Any:
        """The places for queries in a row of that length, or in rows of these."""
        return (length - self.context) // 2

    def slot_weights(self, slots: int) -> Float[np.ndarray, " slots"]:
        """The probability of each slot to be the first one drawn."""
        weights = np.arange(1, slots + 1, dtype=np.float64) ** (self.power - 1)
        return weights / weights.sum()

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        count, half, slots = self.pairs, self.vocab_size // 2, self.slots(width)
        parts = np.split(words, np.cumsum([count, count, slots]), axis=1)
        keys = 1 + distinct(parts[0], half - 1)
        values = half + distinct(parts[1], self.vocab_size - half)
        # Drawing one after another without replacement is, in law, the order of exponential times with these rates.
        times = -np.log(unit(parts[2])) / self.slot_weights(slots)
        times[np.arange(slots) >= self.slots(lengths)[:, None]] = np.inf
        drawn = np.argsort(times, axis=1)[:, :count]
        places = self.context + 2 * drawn
        rows = np.arange(len(words))[:, None]
        inputs, targets = np.zeros((2, len(words), width), np.int64)
        inputs[:, : self.context] = np.tile(np.stack([keys, values], axis=2).reshape(len(words), -1), self.passes)
        inputs[rows, places], targets[rows, places] = keys, values
        if self.random_non_queries:
            inputs = np.where(inputs == 0, below(parts[3], self.vocab_size), inputs)
        return inputs, targets, targets > 0
