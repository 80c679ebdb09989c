"""The recurrent state of the sLSTM and the order of its gates."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

GATES = ("i", "f", "z", "o")
"""The order of the gate axis: input gate, forget gate, cell input, output gate."""


class SLSTMState(NamedTuple):
    """Output, memory, normaliser and stabiliser of the sLSTM; the true memory is ``exp(m) * c``, likewise ``n``.

    n is 0 exactly where no token has been seen: there c and m are ignored.
    """

    y: Float[Array, "batch heads dim"]
    c: Float[Array, "batch heads dim"]
    n: Float[Array, "batch heads dim"]
    m: Float[Array, "batch heads dim"]


def zero_state(batch: int, heads: int, dim: int, dtype: jnp.dtype = jnp.float32) -> SLSTMState:
    """The state before the first token."""
    return SLSTMState(*(jnp.zeros((batch, heads, dim), dtype) for _ in SLSTMState._fields))
