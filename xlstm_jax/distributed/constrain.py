"""One line for models: where activations lie on the mesh. Without a mesh each of these is nothing at all."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from xlstm_jax.distributed.mesh import current


def lie(x: Array, *roles: str | None) -> Array:
    """`x` with its axes parted by their roles: "batch", "sequence", "heads", or None for an axis that is whole."""
    axes = current()
    if axes is None:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes.lying(roles, x.shape)))


def residual(x: Array) -> Array:
    """The stream between blocks, (batch, seq, dim): rows and tokens are parted, features are whole."""
    return lie(x, "batch", "sequence", *(None,) * (x.ndim - 2))


def on_mesh() -> bool:
    """Whether there is a mesh, so that what is parted must not be reshaped into what is not."""
    return current() is not None
