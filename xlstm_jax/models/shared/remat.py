"""Recomputation in the backward pass, switched on by the name of a part of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from xlstm_jax.models.configs import ParallelConfig


def remat(
    part: str, parallel: ParallelConfig | None, method: Callable[..., Any], *, prevent_cse: bool = True
) -> Callable[..., Any]:
    """`method(module, *arrays)`, whose activations are recomputed if `parallel.remat` holds the name of the part.

    `prevent_cse=False` is for the body of a scan, which needs no barrier against common-subexpression elimination.
    """
    if parallel is None or part not in parallel.remat:
        return method
    return nn.remat(method, prevent_cse=prevent_cse)
