"""How well a model predicts held-out documents: loss, perplexity, bits per byte."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.data.store.heldout import HeldoutBatch, HeldoutDocuments, HeldoutWindows
from xlstm_jax.data.store.store import Split
from xlstm_jax.kernels.cross_entropy import cross_entropy
from xlstm_jax.models.language_model import LanguageModel, build_model, with_exact_resets

Progress = Callable[[Iterator[HeldoutBatch], int], Iterator[HeldoutBatch]]


@dataclass(frozen=True)
class Score:
    """Summed cross-entropy of documents, with what it is to be divided by."""

    nats: float
    targets: int
    raw_bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.targets

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """All targets, the end of each document included, over the bytes of the text."""
        return self.nats / math.log(2) / self.raw_bytes

    def to_dict(self) -> dict[str, float]:
        """The keys of metrics.jsonl."""
        return {
            "validation_loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "validation_tokens": self.targets,
        }


class Scorer:
    """A model's compiled scoring of one batch; to be shared by what scores the same model on several texts.

    Each document starts from an empty memory, whatever the model does at document borders in training.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = build_model(with_exact_resets(model.config))
        self.step = jax.jit(functools.partial(_score_rows, self.model), donate_argnums=1)


class HeldOut:
    """Scores parameters on the documents of a split, every document read whole with its state carried.

    Documents lie one after another in lanes. A Transformer reads windows of its context length that overlap by half
    instead: it knows no positions beyond that length, and would be scored on what it was not trained for.

    Args:
        scorer: of the model whose parameters are to be scored.
        split: the documents.
        lanes: rows read side by side; the score does not depend on them.
        seq_len: tokens of a row read at once; the score does not depend on it, unless the model is a Transformer whose
            `context_length` is not set: then it is the size of the windows.
        max_tokens: read only the first documents that fit into so many targets (one at least); all if None.
    """

    def __init__(
        self, scorer: Scorer, split: Split, *, lanes: int = 8, seq_len: int = 256, max_tokens: int | None = None
    ) -> None:
        chosen = first_documents(split, max_tokens)
        self.num_documents = len(chosen)
        self._batches = self._lay_out(scorer.model, split, lanes, seq_len, chosen) if chosen else None
        self._scorer = scorer

    @staticmethod
    def _lay_out(
        model: LanguageModel, split: Split, lanes: int, seq_len: int, documents: list[int]
    ) -> HeldoutDocuments | HeldoutWindows:
        if model.fixed_state:
            return HeldoutDocuments(split, batch_size=lanes, seq_len=seq_len, documents=documents)
        size = model.config.context_length if model.config.context_length > 0 else seq_len
        return HeldoutWindows(split, batch_size=lanes, seq_len=size, documents=documents)

    def __call__(self, params: Any, progress: Progress | None = None) -> Score:
        """The score of the model with these parameters.

        Args:
            params: of the model.
            progress: wraps the iteration over the batches, to show how far it is; gets their number too.

        Raises:
            ValueError: if the split has no documents.
        """
        if self._batches is None:
            raise ValueError("there are no held-out documents to score")
        batches: Iterator[HeldoutBatch] = iter(self._batches)
        if progress is not None:
            batches = progress(batches, self._batches.num_batches)
        model = self._scorer.model
        state = model.init_state(self._batches.batch_size) if model.fixed_state else None
        sums = []
        for batch in batches:
            nats, state = self._scorer.step(params, state, batch)
            sums.append(nats)
        # Summed on the host in float64: there are many batches.
        total = float(np.sum([np.asarray(nats, np.float64) for nats in sums]))
        return Score(total, self._batches.num_targets, self._batches.raw_bytes)


def _score_rows(model: LanguageModel, params: Any, state: Any, batch: HeldoutBatch) -> tuple[jax.Array, Any]:
    variables = {"params": params}
    features: Any = model.apply(
        variables,
        batch.inputs,
        document_borders=batch.document_borders,
        state=state,
        return_state=state is not None,
        method="features",
    )
    if state is not None:
        features, state = features

    def head(chunk: jax.Array) -> Any:
        return model.apply(variables, chunk, method="head")

    total = cross_entropy(
        head,
        features,
        jnp.asarray(batch.targets),
        jnp.asarray(batch.loss_mask),
    )
    return total.nats, state


def first_documents(split: Split, max_tokens: int | None) -> list[int]:
    """The first documents that fit into a number of targets together; the shortest one if none does."""
    if max_tokens is None:
        return list(range(split.num_documents))
    lengths = np.diff(np.asarray(split.offsets).astype(np.int64))
    chosen, room = [], max_tokens
    for number, length in enumerate(lengths.tolist()):
        if length <= room:
            chosen.append(number)
            room -= length
    return chosen if chosen or not len(lengths) else [int(np.argmin(lengths))]
