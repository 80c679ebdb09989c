"""What the memory of the mLSTM does token by token, for people to look at: never part of a model's own program."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.mlstm.gates import log_forget_gate, normaliser_floor
from xlstm_jax.kernels.mlstm.recurrent import step
from xlstm_jax.kernels.mlstm.state import MLSTMState


class MLSTMTrace(NamedTuple):
    """Queries, keys and gates of every token, and the state after it; C, n and m as in `MLSTMState`.

    A state has a leading axis more where its run of blocks is scanned, and so has each of these.
    """

    q: Float[Array, "batch seq heads dim_qk"]
    """Scaled by dim_qk ** -0.5."""
    k: Float[Array, "batch seq heads dim_qk"]
    log_i: Float[Array, "batch seq heads"]
    """Logarithm of the input gate: of the exponential one its pre-activation."""
    log_f: Float[Array, "batch seq heads"]
    """Logarithm of the forget gate."""
    m: Float[Array, "batch seq heads"]
    """Stabiliser."""
    normaliser: Float[Array, "batch seq heads"]
    """n · q, which h is divided by unless the floor is above its absolute value."""
    floor: Float[Array, "batch seq heads"]
    """exp(-m); 1 with the sigmoid gate, which has no stabiliser."""
    memory_norm: Float[Array, "batch seq heads"]
    """Frobenius norm of C, without exp(m)."""
    normaliser_norm: Float[Array, "batch seq heads"]
    """Norm of n, likewise."""
    last: Float[Array, "batch heads dim_qk dim_v"]
    """C after the last token."""


def trace(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h e"],
    i: Float[Array, "b s h"],
    f: Float[Array, "b s h"],
    state: MLSTMState,
    *,
    reset: Bool[Array, "b s"] | None = None,
    mask: Bool[Array, "b s"] | None = None,
    gate: str = "exp",
) -> MLSTMTrace:
    """The sequential form, which keeps norms in place of states."""
    dtype = state.C.dtype
    q, k, v, i, f = (x.astype(dtype) for x in (q, k, v, i, f))

    def body(state: MLSTMState, token: tuple) -> tuple[MLSTMState, tuple[Array, ...]]:
        q, k, v, i, f, reset, mask = token
        _, after = step(state, q, k, v, i, f, reset=reset, mask=mask, gate=gate, normalize=True, eps=0.0)
        floor = normaliser_floor(after.m) if gate == "exp" else jnp.ones_like(after.m)
        scaled = q * q.shape[-1] ** -0.5
        norms = jnp.linalg.norm(after.C, axis=(-2, -1)), jnp.linalg.norm(after.n, axis=-1)
        return after, (after.m, (scaled * after.n).sum(-1), floor, *norms)

    time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, i, f, reset, mask))
    end, found = jax.lax.scan(body, state, time_first)
    log_i = i if gate == "exp" else jax.nn.log_sigmoid(i)
    m, normaliser, floor, memory_norm, normaliser_norm = (jnp.moveaxis(x, 0, 1) for x in found)
    scaled = q * q.shape[-1] ** -0.5
    return MLSTMTrace(scaled, k, log_i, log_forget_gate(f), m, normaliser, floor, memory_norm, normaliser_norm, end.C)
