"""Runs read to lengths that they were not trained for: a record of JSON values a run, which grows bin by bin."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from xlstm_jax.evaluation.text.scores import fingerprint_of
from xlstm_jax.inference.run import Run
from xlstm_jax.machine.progress import Progress
from xlstm_jax.scoring.positions import PositionLoss, PositionScorer, Region, Stretch, stretches

SHORTEST = 16
"""The end of the first bin, about, where no lengths are given."""
TIMES = 64
"""How far beyond the length of training, then."""
UNKNOWN = 256
"""What is taken for the length of training where no run says."""


def default_lengths(trained: Sequence[int], longest: int) -> tuple[int, ...]:
    """The length of training (of several, the least), halved and doubled, up to 64 times the greatest.

    Args:
        trained: the lengths that the runs were trained with; not positive where one does not say.
        longest: tokens of the longest document. Half of them are targets in any case.
    """
    known = [length for length in trained if length > 0] or [UNKNOWN]
    length = min(known)
    while length % 2 == 0 and length > SHORTEST:
        length //= 2
    lengths = [length]
    while 2 * lengths[-1] <= min(TIMES * max(known), longest // 2):
        lengths.append(2 * lengths[-1])
    return tuple(lengths)


def own_stretches(trained: int) -> dict[str, Stretch]:
    """What a run trained at this length is measured with beside its curve: a memory that is emptied every so many
    tokens, and windows that overlap by half, as those that `xlstm eval RUN` has a Transformer read."""
    if trained < 1:
        return {}
    return {"reset": Stretch(0, trained), "windows": Stretch(trained // 2, trained)}


def read_run(
    run: Run,
    documents: Sequence[Integer[np.ndarray, " _"]],
    regions: Sequence[Region],
    lengths: Sequence[int],
    before: Mapping[str, Any],
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """The record of a run as it grows, whole with the last.

    Args:
        documents: as `PositionScorer`'s; the first token of each is changed to the run's BOS, if it has one.
        lengths: the ends of the bins of positions.
        before: the record of an earlier pass over the same regions; it is gone on with if it is of the same weights.

    Raises:
        NotFiniteError: if the model's logits are NaN or infinite.
    """
    trained = run.config.context_length
    identity = {"run": str(run.path), "step": run.step, "weights": fingerprint_of(run)}
    same = identity["weights"] and all(before.get(name) == value for name, value in identity.items())
    bins, own = stretches(lengths), own_stretches(trained)
    nats = _found(before) if same else {}
    seconds = float(before.get("seconds", 0.0)) if same else 0.0
    if run.bos_id is not None:
        documents = [np.concatenate([[run.bos_id], document[1:]]) for document in documents]
    reader = PositionScorer(run.scorer, documents, regions)

    def record() -> dict[str, Any]:
        done = [PositionLoss(place, nats[place], reader.tokens) for place in bins if place in nats]
        values = {name: _value(nats.get(place), place, reader.tokens) for name, place in own.items()}
        return {
            **identity,
            "parameters": run.model.param_count,
            "tokenizer": run.tokenizer.fingerprint[:16],
            "context_length": trained,
            "fixed_state": run.model.fixed_state,
            "complete": all(place in nats for place in (*bins, *own.values())),
            "seconds": seconds,
            "by_position": [_value(one.nats, one.positions, one.tokens) for one in done],
            "by_window": list(_by_window(done)),
            "reset": values.get("reset"),
            "windows": values.get("windows"),
        }

    left = [place for place in dict.fromkeys([*bins, *own.values()]) if place not in nats]
    total = reader.tokens * (len(left) + len(nats))
    with progress.bar(run.path.name, total, reader.tokens * len(nats)) as bar:
        for place in left:
            started = time.monotonic()
            nats[place] = reader(run.params, place, bar).nats
            seconds += time.monotonic() - started
            yield record()
    if not left:
        yield record()


def _found(before: Mapping[str, Any]) -> dict[Stretch, float]:
    entries = [*before.get("by_position", ()), before.get("reset"), before.get("windows")]
    return {Stretch(entry["from"], entry["to"]): entry["nats"] for entry in entries if entry}


def _value(nats: float | None, place: Stretch, tokens: int) -> dict[str, Any] | None:
    if nats is None:
        return None
    return {"from": place.first, "to": place.end, "nats": nats, "loss": nats / tokens}


def _by_window(found: Sequence[PositionLoss]) -> Iterator[dict[str, Any]]:
    """The mean over all positions up to each length."""
    total = 0.0
    for one in found:
        total += (one.positions.end - one.positions.first) * one.loss
        yield {"length": one.positions.end, "loss": total / one.positions.end}
