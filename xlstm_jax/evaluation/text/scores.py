"""Runs scored on a text: one record of JSON values a run, which grows document by document and is gone on with."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import DataError
from xlstm_jax.data.store import Split, TokenStore
from xlstm_jax.evaluation.text.texts import Text, total
from xlstm_jax.files import sha256_of
from xlstm_jax.inference.run import Run
from xlstm_jax.machine.progress import Progress
from xlstm_jax.runs.errors import RunError
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.runs.manifest import MANIFEST_NAME
from xlstm_jax.scoring.baselines import byte_counts, unigram_bits_per_byte
from xlstm_jax.scoring.documents import NUM_BINS, DocumentScore, DocumentScorer, bin_range, bin_sizes
from xlstm_jax.scoring.score import MOST_NATS
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.run_store import store_of

SAVE_SECONDS = 20.0
"""Between two records of a run that is being scored: what a kill can cost."""


def training_store(path: str) -> TokenStore | None:
    """The token store that a run learnt from, if it learnt here and the store can be found."""
    folder = RunFolder.open(path)
    with contextlib.suppress(RunError, ConfigError):
        return store_of(folder.read_config(Experiment).data, folder)
    return None


def fingerprint_of(run: Run) -> str | None:
    """What tells a checkpoint from every other; None if it was removed meanwhile."""
    with contextlib.suppress(OSError):
        return sha256_of(RunFolder(run.path).checkpoints(read_only=True).path(run.step) / MANIFEST_NAME)[:16]
    return None


def score_run(
    run: Run, text: Text, before: Mapping[str, Any], progress: Progress, clear_every: int | None
) -> Iterator[dict[str, Any]]:
    """The record of a run as it grows, whole with the last.

    Args:
        before: the record of an earlier pass over the same text; it is gone on with if it is of the same weights.

    Raises:
        NotFiniteError: if the model's logits are NaN or infinite.
    """
    identity = {"run": str(run.path), "step": run.step, "weights": fingerprint_of(run)}
    same = identity["weights"] and all(before.get(name) == value for name, value in identity.items())
    split = text.split(run.tokenizer)
    sums = _Sums(text, split, clear_every, before if same else {})
    facts = {
        **identity,
        "parameters": run.model.param_count,
        "tokenizer": run.tokenizer.fingerprint[:16],
        "context_length": run.config.context_length,
        "unigram": _unigram(str(run.path), split),
    }
    started, saved = time.monotonic() - sums.seconds, time.monotonic()
    lengths = np.diff(np.asarray(split.offsets).astype(np.int64))
    left = [number for number in range(split.num_documents) if number not in sums.done]
    scorer = DocumentScorer(run.scorer, split, bos_id=run.bos_id, clear_every=clear_every)
    with progress.bar(run.path.name, int(lengths.sum()), int(lengths.sum() - lengths[left].sum())) as bar:
        for score in scorer(run.params, left, bar):
            sums.add(score)
            if time.monotonic() - saved >= SAVE_SECONDS:
                sums.seconds = time.monotonic() - started
                yield facts | sums.record()
                saved = time.monotonic()
    if left:
        sums.seconds = time.monotonic() - started
    yield facts | sums.record()


class _Sums:
    """What the documents that are done add up to."""

    def __init__(self, text: Text, split: Split, clear_every: int | None, before: Mapping[str, Any]) -> None:
        self._text, self._clear_every = text, clear_every
        self._lengths = np.diff(np.asarray(split.offsets).astype(np.int64))
        self.seconds = float(before.get("seconds", 0.0))
        self.done: dict[int, tuple[float, float]] = {}
        """Document -> (nats, those of its end)."""
        self._nats, self._tokens = np.zeros(NUM_BINS), np.zeros(NUM_BINS, np.int64)
        for entry in before.get("by_document", ()):
            self._count(entry["number"], entry["nats"], entry["end_nats"])
        for number, entry in enumerate(before.get("by_position", ())):
            self._nats[number] = entry["nats"]

    def add(self, score: DocumentScore) -> None:
        self._count(score.number, score.nats, score.end_nats)
        self._nats += score.nats_by_position

    def _count(self, number: int, nats: float, end_nats: float) -> None:
        self.done[number] = (nats, end_nats)
        self._tokens += bin_sizes(int(self._lengths[number]), self._clear_every)

    def record(self) -> dict[str, Any]:
        """JSON values of all that is known."""
        numbers = sorted(self.done)
        counts = total(self._text.counts[number] for number in numbers)
        nats = float(np.sum([self.done[number][0] for number in numbers]))
        tokens = int(self._lengths[numbers].sum())
        bits = nats / math.log(2)
        return {
            "complete": len(numbers) == len(self._lengths),
            "nats": nats,
            "tokens": tokens,
            **counts._asdict(),
            "documents": len(numbers),
            "end_nats": float(np.sum([self.done[number][1] for number in numbers])),
            "loss": _over(nats, tokens),
            "perplexity": _perplexity(nats, tokens),
            "nats_per_byte": _over(nats, counts.bytes),
            "bits_per_byte": _over(bits, counts.bytes),
            "nats_per_character": _over(nats, counts.characters),
            "bits_per_character": _over(bits, counts.characters),
            "word_perplexity": _perplexity(nats, counts.words),
            "seconds": self.seconds,
            "by_position": [
                dict(zip(("from", "to"), bin_range(place), strict=True))
                | {"tokens": int(self._tokens[place]), "nats": float(self._nats[place])}
                for place in range(int(np.count_nonzero(self._tokens)))
            ],
            "by_document": [self._document(number) for number in numbers],
        }

    def _document(self, number: int) -> dict[str, Any]:
        nats, end_nats = self.done[number]
        size = self._text.counts[number].bytes
        return {
            "number": number,
            "name": self._text.documents[number],
            "tokens": int(self._lengths[number]),
            "bytes": size,
            "nats": nats,
            "end_nats": end_nats,
            "bits_per_byte": _over(nats / math.log(2), size),
        }


def _over(sum_: float, count: int) -> float | None:
    return sum_ / count if count else None


def _perplexity(nats: float, count: int) -> float | None:
    return math.exp(min(nats / count, MOST_NATS)) if count else None


def _unigram(path: str, split: Split) -> float | None:
    """Bits per byte under the byte frequencies of what the run learnt from, if that can be found."""
    with contextlib.suppress(DataError):
        store = training_store(path)
        if store is not None and split.raw_bytes:
            return unigram_bits_per_byte(byte_counts(store.split("train")), byte_counts(split))
    return None
