"""What trained language models are measured by: the loss on held-out text, and by position far beyond training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xlstm_jax.evaluation.text.scores import training_store
from xlstm_jax.inference.run import Run
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.scoring.positions import PositionLoss, PositionScorer, Stretch, loss_by_position, regions


def held_out(run: Run) -> list[np.ndarray]:
    """The held-out documents that a run has, as tokens, each with the one that opens it; the longest first."""
    store = training_store(str(run.path))
    assert store is not None  # it was trained from it a moment ago
    split = store.split("validation")
    return sorted((np.asarray(split.document(n)) for n in range(split.num_documents)), key=len, reverse=True)


def by_position(run: Run, times: int, most: int) -> list[PositionLoss]:
    """The loss on the same held-out tokens at positions up to so many times the length of training, in bins that
    double from a quarter of it."""
    trained = run.config.context_length
    lengths = [trained // 4 * 2**power for power in range(int(math.log2(4 * times)) + 1)]
    return loss_by_position(run.scorer, run.params, held_out(run), lengths, most=most)


def in_windows(run: Run, most: int) -> float:
    """Nats per token in windows of the length of training, each token once: what nanoGPT estimates at random places."""
    documents, window = held_out(run), Stretch(0, run.config.context_length)
    found = regions([len(document) - 1 for document in documents], [window], most)
    return PositionScorer(run.scorer, documents, found)(run.params, window).loss


def whole_text(run: Run) -> float:
    """Nats per token of all held-out text, as the run's own report has it: memory carried, a Transformer's windows."""
    report = RunFolder(run.path).read_report(run.step)
    assert report is not None  # written when training ended
    return float(report["validation_loss"])


def mean_loss(curve: list[PositionLoss], first: int, end: int) -> float:
    """Nats per token at the positions from `first` to before `end`, which are edges of the curve's bins."""
    inside = [one for one in curve if first <= one.positions.first and one.positions.end <= end]
    total = sum((one.positions.end - one.positions.first) * one.loss for one in inside)
    return total / sum(one.positions.end - one.positions.first for one in inside)


def curve_of(found: list[PositionLoss]) -> list[tuple[float, float]]:
    """Points of a picture over the logarithm of the position."""
    return [(math.sqrt(max(one.positions.first, 1) * one.positions.end), one.loss) for one in found]


def facts_of(run: Run) -> dict[str, Any]:
    """What result.json says of a run."""
    return {"parameters": run.model.param_count, "steps": run.step, "run": run.path.name}
