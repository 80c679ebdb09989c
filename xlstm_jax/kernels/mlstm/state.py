"""The recurrent state of the mLSTM."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class MLSTMState(NamedTuple):
    """Matrix memory, normaliser and stabiliser of the mLSTM; the true memory is ``exp(m) * C``, likewise ``n``.

    With the sigmoid input gate nothing needs stabilising: m stays as it came and the true memory is C itself.
    """

    C: Float[Array, "batch heads dim_qk dim_v"]
    n: Float[Array, "batch heads dim_qk"]
    m: Float[Array, "batch heads"]


def zero_state(batch: int, heads: int, dim_qk: int, dim_v: int, dtype: jnp.dtype = jnp.float32) -> MLSTMState:
    """The state before the first token: zeros, with stabiliser 0."""
    return MLSTMState(
        jnp.zeros((batch, heads, dim_qk, dim_v), dtype),
        jnp.zeros((batch, heads, dim_qk), dtype),
        jnp.zeros((batch, heads), dtype),
    )


def clear_padding(mask: Bool[Array, "*lead"], *arrays: Array) -> tuple[Array, ...]:
    """The arrays (*lead, ...) with zeros where mask is false: whatever stands there, NaN included, has no influence."""
    return tuple(jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, 0) for x in arrays)
