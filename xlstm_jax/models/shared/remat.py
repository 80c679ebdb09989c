"""Recomputation in the backward pass, switched on by the name of a part of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from xlstm_jax.models.configs import ParallelConfig


def call_part(
    name: str,
    parallel: ParallelConfig | None,
    call: Callable[..., Any],
    module: nn.Module,
    *arrays: Any,
    prevent_cse: bool = True,
) -> Any:
    """`call(module, *arrays)`, whose activations are recomputed if `parallel.remat` holds `name`.

    Flags that Python decides on (train, return_state) belong into the closure of `call`: everything in `arrays` is
    traced. `prevent_cse=False` is for the body of a scan, which needs no barrier against common-subexpression
    elimination.
    """
    if parallel is not None and name in parallel.remat:
        call = nn.remat(call, prevent_cse=prevent_cse)
    return call(module, *arrays)
