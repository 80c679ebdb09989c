"""What a model pays for continuations of contexts, as in questions with several answers.

A context is read once, however many continuations it has: each of them goes on from a copy of the row of its state. So
does every context from what many of them begin with, such as the examples that a task puts before all its questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from xlstm_jax.distributed.kernels import target_scores
from xlstm_jax.distributed.placement import beside
from xlstm_jax.kernels.cross_entropy import TargetScores
from xlstm_jax.models.language_model import LanguageModel, build_model, with_exact_resets
from xlstm_jax.scoring.chunks import chunks, power_of_two, room
from xlstm_jax.scoring.finite import not_finite

ROWS = 16
"""Texts side by side, at most."""
SHORTEST_OPENING, FEWEST_CONTEXTS = 32, 4
"""What so many contexts begin with is read once if it is so many tokens long."""

T = TypeVar("T")
Tokens = Int32[np.ndarray, " _"]


NOTHING = np.zeros(0, np.int32)


class Continuation(NamedTuple):
    """Tokens to score after a context."""

    context: Tokens
    """One token at least: the one that opens a text, if there is no other."""
    tokens: Tokens


class ContinuationScore(NamedTuple):
    """What a model pays for a continuation."""

    nats: float
    greedy: bool
    """Whether each token is the model's first choice after those before it; of equally likely ones that is the one with
    the lowest id, as in generation."""


@dataclass
class _Head:
    """A context without its last token, which is read with the continuations: its logits are those of their first."""

    tokens: Tokens
    continuations: list[int]


class ContinuationScorer:
    """A model's compiled scoring of continuations; to be shared by what scores the same model.

    What comes out does not depend on what stands beside what, nor on the lengths: all is padded on the right, where a
    masked token leaves the state as it is, and read in chunks of few sizes.

    Args:
        model: texts start from an empty memory, whatever it does at document borders in training.
        rows: texts side by side, at most; there are twice as many states.
    """

    def __init__(self, model: LanguageModel, rows: int = ROWS) -> None:
        self.model, self.rows = build_model(with_exact_resets(model.config)), power_of_two(rows)
        self.tokens_read = 0
        """Tokens that went through the model so far, padding left out."""
        self._read = jax.jit(partial(_read, self.model), donate_argnums=1)
        self._score = jax.jit(partial(_score, self.model), donate_argnums=1)
        self._copy = jax.jit(lambda state, rows: jax.tree.map(lambda leaf: leaf[rows], state))

    def __call__(self, params: Any, continuations: Sequence[Continuation]) -> Iterator[tuple[int, ContinuationScore]]:
        """(number, score) of each continuation, as they are found.

        Raises:
            ValueError: for a continuation without a context.
            NotFiniteError: if the model's logits are NaN or infinite.
        """
        for number, (context, _) in enumerate(continuations):
            if not len(context):
                raise ValueError(f"continuation {number} has no context, but must follow one token at least")
        longest = max((len(context) + len(tokens) for context, tokens in continuations), default=0)
        waiting: Iterator[tuple[int, ContinuationScore]] = iter(())
        # The same number in every batch: what it has to spare costs less than one more program to compile.
        rows = min(self.rows, power_of_two(len(continuations)))
        with beside(params):
            for opening, heads in _by_opening(_heads(continuations)):
                first = self._opened(params, opening, longest)
                for group in _batches(heads, rows):
                    state = self._after(params, first, rows, [head.tokens[len(opening) :] for head in group])
                    owners = [(row, number) for row, head in enumerate(group) for number in head.continuations]
                    owners.sort(key=lambda owner: -len(continuations[owner[1]].tokens))
                    for some in _batches(owners, rows):
                        origins, numbers = zip(*some, strict=True)
                        followed = self._copy(state, np.array([*origins, *[0] * (rows - len(origins))], np.int32))
                        scores = self._scores(params, followed, rows, [continuations[number] for number in numbers])
                        # What a batch came to is fetched while the next one is computed.
                        yield from waiting
                        waiting = _fetched(params, numbers, scores)
            yield from waiting

    def _opened(self, params: Any, opening: Tokens, longest: int) -> Any:
        """The state of one row, after what all contexts to come begin with."""
        state = self.model.init_state(1, None if self.model.fixed_state else room(longest))
        return self._after(params, state, 1, [opening]) if len(opening) else state

    def _after(self, params: Any, state: Any, rows: int, texts: Sequence[Tokens]) -> Any:
        """The states of rows that go on from the only one of `state`, each with its text."""
        state = self._copy(state, np.zeros(rows, np.int32))
        for tokens, mask in self._pieces(rows, texts):
            state = self._read(params, state, tokens, mask)
        return state

    def _scores(self, params: Any, state: Any, rows: int, continuations: Sequence[Continuation]) -> list[TargetScores]:
        """The scores of continuations, one in each of the first rows of a state, chunk by chunk."""
        inputs = [np.append(context[-1:], tokens[:-1])[: len(tokens)] for context, tokens in continuations]
        targets = self._pieces(rows, [tokens for _, tokens in continuations], count=False)
        found = []
        for (tokens, mask), (wanted, _) in zip(self._pieces(rows, inputs), targets, strict=True):
            scores, state = self._score(params, state, tokens, wanted, mask)
            found.append(scores)
        return found

    def _pieces(
        self, rows: int, texts: Sequence[Tokens], count: bool = True
    ) -> Iterator[tuple[Int32[np.ndarray, "rows seq"], Bool[np.ndarray, "rows seq"]]]:
        """(tokens, mask) of texts in the first rows, chunk by chunk."""
        lengths = np.array([*map(len, texts), *[0] * (rows - len(texts))])
        self.tokens_read += int(lengths.sum()) if count else 0
        for start, size in chunks(int(lengths.max())):
            tokens = np.zeros((rows, size), np.int32)
            for row, text in enumerate(texts):
                part = text[start : start + size]
                tokens[row, : len(part)] = part
            yield tokens, start + np.arange(size) < lengths[:, None]


def _heads(continuations: Sequence[Continuation]) -> list[_Head]:
    """The different contexts."""
    heads: dict[bytes, _Head] = {}
    for number, (context, _) in enumerate(continuations):
        tokens = np.asarray(context[:-1], np.int32)
        heads.setdefault(tokens.tobytes(), _Head(tokens, [])).continuations.append(number)
    return list(heads.values())


def _by_opening(heads: Sequence[_Head]) -> Iterator[tuple[Tokens, list[_Head]]]:
    """Contexts with what they all begin with, long ones first; that is nothing for those that share it with few."""
    groups: list[list[_Head]] = []
    openings: list[Tokens] = []
    for head in sorted(heads, key=lambda head: head.tokens.astype(">u4").tobytes()):
        common = common_beginning(openings[-1], head.tokens) if groups else 0
        if common >= SHORTEST_OPENING:
            groups[-1].append(head)
            openings[-1] = head.tokens[:common]
        else:
            groups.append([head])
            openings.append(head.tokens)
    others = [head for group in groups if len(group) < FEWEST_CONTEXTS for head in group]
    found = [(opening, group) for opening, group in zip(openings, groups, strict=True) if len(group) >= FEWEST_CONTEXTS]
    for opening, group in [*found, *([(NOTHING, others)] if others else [])]:
        yield opening, sorted(group, key=lambda head: -len(head.tokens))


def common_beginning(one: Tokens, other: Tokens) -> int:
    """How many tokens two texts begin with alike."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _fetched(
    params: Any, numbers: Sequence[int], scores: Sequence[TargetScores]
) -> Iterator[tuple[int, ContinuationScore]]:
    nats, greedy = np.zeros(len(numbers)), np.ones(len(numbers), bool)
    for chunk in scores:
        nats += np.asarray(chunk.nats, np.float64)[: len(numbers)].sum(axis=1)
        greedy &= np.asarray(chunk.likeliest)[: len(numbers)].all(axis=1)
    for row, number in enumerate(numbers):
        if not math.isfinite(nats[row]):
            raise not_finite(params, "the logits of a continuation")
        yield number, ContinuationScore(float(nats[row]), bool(greedy[row]))


def _read(
    model: LanguageModel, params: Any, state: Any, tokens: Int[Array, "batch seq"], mask: Bool[Array, "batch seq"]
) -> Any:
    return model.apply({"params": params}, tokens, mask=mask, state=state, return_state=True, method="features")[1]


def _score(
    model: LanguageModel,
    params: Any,
    state: Any,
    tokens: Int[Array, "batch seq"],
    targets: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
) -> tuple[TargetScores, Any]:
    hidden, state = model.apply(
        {"params": params}, tokens, mask=mask, state=state, return_state=True, method="features"
    )

    def head(params: Any, chunk: Array) -> Any:
        return model.apply({"params": params}, chunk, method="head")

    return target_scores(head, model.head_params(params), hidden, targets, mask), state
