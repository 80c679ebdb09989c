"""The part of the check that is the cross-entropy, whose logits never exist all at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.evaluation.kernels.cell import Arrays, Case, Cell, Problem
from xlstm_jax.kernels.cross_entropy import cross_entropy, plain_cross_entropy

BATCH, LENGTH, DIM, VOCAB, CHUNK = 2, 23, 16, 50, 16


def _case(name: str, **draw: Any) -> Case:
    return Case(name, LENGTH, draw=draw)


CASES = (
    Case("1 token", 1, quick=False),
    _case("23 tokens, three chunks"),
    _case("padding", padding=0.3),
    _case("nothing but padding", padding=1.0),
    _case("logits around ±100", scale=100.0),
    _case("no rows", batch=0),
)


def cross_entropy_cell() -> Cell:
    """Features in, summed nats out, through a head in float32 as the models have it."""
    return Cell(
        title="cross-entropy",
        kind="cross_entropy",
        forms={"plain": _plain, "chunked": _chunked},
        oracle="plain",
        truth=_plain,
        truth_length=None,
        cases=CASES,
        draw=draw,
        narrow=frozenset(("features",)),
        sequence=frozenset(("features",)),
    )


def _head(kernel: Any, features: Any) -> Any:
    return jnp.matmul(features.astype(kernel.dtype), kernel, precision=jax.lax.Precision.HIGHEST)


def _plain(x: Arrays, given: Arrays) -> Arrays:
    return {"nats": plain_cross_entropy(_head(x["kernel"], x["features"]), given["targets"], given["counts"]).nats}


def _chunked(x: Arrays, given: Arrays) -> Arrays:
    def head(features: Any) -> Any:
        return _head(x["kernel"], features)

    return {"nats": cross_entropy(head, x["features"], given["targets"], given["counts"], chunk_tokens=CHUNK).nats}


def draw(
    rng: np.random.Generator, length: int, *, batch: int = BATCH, scale: float = 1.0, padding: float = 0.0
) -> Problem:
    """Logits of about ± `scale`; `padding` is the share of targets that do not count."""
    inputs = {
        "features": rng.normal(size=(batch, length, DIM)),
        "kernel": scale * rng.normal(size=(DIM, VOCAB)) / DIM**0.5,
    }
    counts = rng.random((batch, length)) >= padding
    given = {"targets": rng.integers(0, VOCAB, (batch, length)), "counts": counts}
    return Problem(inputs, given, {"nats": np.asarray(rng.normal())})
