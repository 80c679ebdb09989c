"""Word problems of finite groups: the product of all elements so far, at every position."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int

from xlstm_jax.evaluation.synthetic.task import Drawn, Task, Words, below, inside

Group = Literal["s3", "s4", "a4", "a5", "s5", "z60", "a4xz5"]


def _permutations(group: str) -> list[tuple[int, ...]]:
    """The elements as permutations, the identity first: all of n things for sN, the even ones for aN."""
    if group == "z60":
        return [tuple((i + shift) % 60 for i in range(60)) for shift in range(60)]
    if group == "a4xz5":
        turns = [tuple(4 + (i + shift) % 5 for i in range(5)) for shift in range(5)]
        return [one + other for one in _permutations("a4") for other in turns]
    every = itertools.permutations(range(int(group[1:])))
    return [p for p in every if group[0] == "s" or _even(p)]


def _even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


@functools.cache
def multiplication_table(group: Group) -> Int[np.ndarray, "elements elements"]:
    """[a, b] is the number of a b: first a, then b."""
    elements = _permutations(group)
    number = {element: i for i, element in enumerate(elements)}
    # `b after a` of mappings i -> b[a[i]].
    table = [[number[tuple(b[i] for i in a)] for b in elements] for a in elements]
    return np.array(table, np.int64)


@dataclass(frozen=True)
class WordProblem(Task):
    """Elements of a group, drawn uniformly; at every position t the product x1 x2 ... xt of those so far.

    Elements are numbered from 0, the identity, which also stands behind a row's end. Merrill et al. (The Illusion of
    State, arXiv 2404.08819; generate_data.py of jopetty/word-problem) and Grazzi et al. (arXiv 2411.12537, 5.2), who
    trained on 32 elements. Chance is one by the number of elements. Token accuracy is drawn by position; the accuracy
    of whole rows, Grazzi et al.'s measure, stands beside it.
    """

    group: Group = "s3"

    question: ClassVar[str] = "the product of the elements so far"
    source: ClassVar[str] = "Merrill et al., arXiv 2404.08819; Grazzi et al., arXiv 2411.12537, 5.2"
    by_position: ClassVar[bool] = True

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(map(str, range(len(multiplication_table(self.group)))))

    @property
    def chance(self) -> float:
        return 1 / self.vocab_size

    def possible(self, high: int) -> np.ndarray:
        return np.arange(1, high + 1)

    def max_targets(self, length: int) -> int:
        return length

    def draw(self, words: Words, lengths: np.ndarray, width: int) -> Drawn:
        table = multiplication_table(self.group)
        elements = below(words, len(table))
        products, reach = elements.copy(), 1
        while reach < width:  # each is of the last `reach` elements, of all at the end
            products[:, reach:] = table[products[:, :-reach], products[:, reach:]]
            reach *= 2
        return elements, products, inside(lengths, width)
