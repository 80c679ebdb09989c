"""The mLSTM one token at a time: the oracle that every other form is tested against, and the step for decoding.

Written to be read beside the xLSTM paper (arXiv 2405.04517, equations 19-27): nothing here is clever.
Shape suffixes: b batch, s seq, h heads, d dim_qk, e dim_v.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.mlstm.gates import log_forget_gate, normaliser_floor
from xlstm_jax.kernels.mlstm.state import MLSTMState, clear_padding


def recurrent(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h e"],
    i: Float[Array, "b s h"],
    f: Float[Array, "b s h"],
    state: MLSTMState,
    *,
    reset: Bool[Array, "b s"] | None,
    mask: Bool[Array, "b s"] | None,
    gate: str,
    normalize: bool,
    eps: float,
) -> tuple[Float[Array, "b s h e"], MLSTMState]:
    """`step` scanned over time."""

    def body(state: MLSTMState, xs: tuple) -> tuple[MLSTMState, Array]:
        q, k, v, i, f, reset, mask = xs
        h, state = step(state, q, k, v, i, f, reset=reset, mask=mask, gate=gate, normalize=normalize, eps=eps)
        return state, h

    time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, i, f, reset, mask))
    state, h = jax.lax.scan(body, state, time_first)
    return jnp.moveaxis(h, 0, 1), state


def step(
    state: MLSTMState,
    q: Float[Array, "b h d"],
    k: Float[Array, "b h d"],
    v: Float[Array, "b h e"],
    i: Float[Array, "b h"],
    f: Float[Array, "b h"],
    *,
    reset: Bool[Array, " b"] | None,
    mask: Bool[Array, " b"] | None,
    gate: str,
    normalize: bool,
    eps: float,
) -> tuple[Float[Array, "b h e"], MLSTMState]:
    """One token. The arithmetic runs in the dtype of the state; h comes in the dtype of v."""
    old, out_dtype, dtype = state, v.dtype, state.C.dtype
    q, k, v, i, f = (x.astype(dtype) for x in (q, k, v, i, f))
    if mask is not None:
        q, k, v, i, f = clear_padding(mask, q, k, v, i, f)
    if reset is not None:
        state = MLSTMState(
            jnp.where(reset[:, None, None, None], 0, state.C),
            jnp.where(reset[:, None, None], 0, state.n),
            jnp.where(reset[:, None], 0, state.m),
        )
    q = q * q.shape[-1] ** -0.5
    log_f = log_forget_gate(f)
    if gate == "exp":
        m = jnp.maximum(log_f + state.m, i)
        decay, write, floor = jnp.exp(log_f + state.m - m), jnp.exp(i - m), normaliser_floor(m)
    else:
        m, decay, write, floor = old.m, jnp.exp(log_f), jax.nn.sigmoid(i), jnp.ones_like(i)
    C = decay[..., None, None] * state.C + write[..., None, None] * (k[..., :, None] * v[..., None, :])
    n = decay[..., None] * state.n + write[..., None] * k
    h = jnp.einsum("bhd,bhde->bhe", q, C, precision=jax.lax.Precision.HIGHEST)
    if normalize:
        s = jnp.sum(q * n, axis=-1)
        h = h / (jnp.maximum(jnp.abs(s), floor) + eps)[..., None]
    new = MLSTMState(C, n, m)
    if mask is not None:
        h = jnp.where(mask[:, None, None], h, 0)
        new = jax.tree.map(lambda x, y: jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, y), new, old)
    return h.astype(out_dtype), new
