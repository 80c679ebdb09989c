"""What the memory of the sLSTM does token by token, for people to look at: never part of a model's own program."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.slstm.recurrent import Options, step, with_bias
from xlstm_jax.kernels.slstm.state import SLSTMState


class SLSTMTrace(NamedTuple):
    """Gates of every token, and the state after it; c, n and m as in `SLSTMState`.

    Each has a leading axis more where its run of blocks is scanned.
    """

    log_i: Float[Array, "batch seq heads dim"]
    """Logarithm of the input gate, which is its pre-activation."""
    log_f: Float[Array, "batch seq heads dim"]
    """Logarithm of the forget gate."""
    z: Float[Array, "batch seq heads dim"]
    """Cell input, in [-1, 1]."""
    o: Float[Array, "batch seq heads dim"]
    """Output gate, in [0, 1]."""
    c: Float[Array, "batch seq heads dim"]
    n: Float[Array, "batch seq heads dim"]
    m: Float[Array, "batch seq heads dim"]


def trace(
    wx: Float[Array, "b s g h d"],
    r: Float[Array, "g h d d"],
    b: Float[Array, "g h d"],
    state: SLSTMState,
    *,
    reset: Bool[Array, "b s"] | None = None,
    mask: Bool[Array, "b s"] | None = None,
    options: Options,
) -> SLSTMTrace:
    """The sequential form, which keeps every state."""
    dtype = state.c.dtype
    r, b = r.astype(dtype), b.astype(dtype)

    def body(state: SLSTMState, token: tuple) -> tuple[SLSTMState, tuple[Array, ...]]:
        wx, reset, mask = token
        y = state.y if reset is None else jnp.where(reset[:, None, None], 0, state.y)
        ry = jnp.einsum(
            "ghod,bhd->bgho",
            r.astype(options.product_dtype),
            y.astype(options.product_dtype),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=dtype,
        )
        _, after = step(state, wx, r, b, reset=reset, mask=mask, options=options)
        return after, (with_bias(wx, b, dtype) + ry, after.c, after.n, after.m)

    time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (wx, reset, mask))
    _, found = jax.lax.scan(body, state, time_first)
    gates, *after = (jnp.moveaxis(x, 0, 1) for x in found)
    i, f, z, o = jnp.moveaxis(gates, 2, 0)
    return SLSTMTrace(i, jax.nn.log_sigmoid(f), jnp.tanh(z), jax.nn.sigmoid(o), *after)
