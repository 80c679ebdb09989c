"""One line for models: where activations lie on the mesh. Without a mesh each of these is nothing at all."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
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


def on_whole_matrices(function: Callable[[Array], Array], x: Array) -> Array:
    """A function of matrices (..., rows, columns) that needs each whole on a device. Those of a stack are dealt out to
    the devices that parameters are parted over, unevenly where there are not as many."""
    axes = current()
    if axes is None:
        return function(x)
    stack = tuple(axes.names[use] for use in ("fsdp", "sequence") if axes.sizes[use] > 1)
    whole = P(stack) if stack and x.ndim > 2 else P()
    # Around it as the parameter lies, else what x is made from, and the parameter itself, would be dealt out as well.
    around = P(*(None,) * (x.ndim - 2), P.UNCONSTRAINED, P.UNCONSTRAINED)
    for spec in (around, whole):
        x = jax.lax.with_sharding_constraint(x, spec)
    y = function(x)
    for spec in (whole, around):
        y = jax.lax.with_sharding_constraint(y, spec)
    return y


def on_mesh() -> bool:
    """Whether there is a mesh, so that what is parted must not be reshaped into what is not."""
    return current() is not None


_GRADIENTS: contextvars.ContextVar[str | None] = contextvars.ContextVar("gradients", default=None)


@contextlib.contextmanager
def gradients_in(dtype: str | None) -> Iterator[None]:
    """While a step is traced: the gradients of dense maps are summed over devices in this dtype; None for the usual."""
    token = _GRADIENTS.set(dtype)
    try:
        yield
    finally:
        _GRADIENTS.reset(token)


def gradient_dtype(usual: Any) -> Any:
    """The dtype that the gradient of a dense map's kernel is summed in."""
    dtype = _GRADIENTS.get()
    return usual if dtype is None else jnp.dtype(dtype)


def gathered_in(params: Any, shardings: Any, dtype: str | None) -> Any:
    """The parameters that are parted over `fsdp`, cast to a dtype while they still are: what is gathered is that."""
    axes = current()
    if axes is None or dtype is None:
        return params
    parting = {axes.names["fsdp"], axes.names["sequence"]}

    def cast(x: Array, sharding: Any) -> Array:
        names = {name for entry in sharding.spec for name in (entry if isinstance(entry, tuple) else (entry,))}
        return jax.lax.with_sharding_constraint(x.astype(dtype), sharding) if names & parting else x

    return jax.tree.map(cast, params, shardings)
