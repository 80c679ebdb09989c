"""The mLSTM as one masked attention-like product over the whole sequence: quadratic, but with nothing hidden.

Equations: xLSTM paper (arXiv 2405.04517), appendix A.3, with the two terms added that the paper leaves out: what an
initial state contributes, and its stabiliser m0. Every exponent is formed by a sum over the tokens in between (never as
a difference of two long sums), so it stays exact when gates are extreme.
Shape suffixes: b batch, h heads, t query time, j key time, d dim_qk, e dim_v.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.mlstm.gates import log_forget_gate, normaliser_floor
from xlstm_jax.kernels.mlstm.state import MLSTMState, clear_padding

_HIGHEST = jax.lax.Precision.HIGHEST


def parallel(
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
    """All tokens at once; O(seq²) time and memory, differentiated by JAX."""
    out_dtype, dtype = v.dtype, state.C.dtype
    if mask is not None:
        q, k, v, i, f = clear_padding(mask, q, k, v, i, f)
    q, k, v = (jnp.moveaxis(x.astype(dtype), 2, 1) for x in (q, k, v))
    i, f = (jnp.moveaxis(x.astype(dtype), 2, 1) for x in (i, f))
    q = q * q.shape[-1] ** -0.5
    w, carried, m = parallel_weights(i, f, state.m, reset=reset, mask=mask, gate=gate)
    scores = jnp.einsum("bhtd,bhjd->bhtj", q, k, precision=_HIGHEST) * w
    h = jnp.einsum("bhtj,bhje->bhte", scores, v, precision=_HIGHEST)
    h = h + carried[..., None] * jnp.einsum("bhtd,bhde->bhte", q, state.C, precision=_HIGHEST)
    if normalize:
        s = jnp.sum(scores, axis=-1) + carried * jnp.einsum("bhtd,bhd->bht", q, state.n, precision=_HIGHEST)
        h = h / (jnp.maximum(jnp.abs(s), normaliser_floor(m)) + eps)[..., None]
    h = jnp.moveaxis(h, 1, 2).astype(out_dtype)
    if mask is not None:
        h = jnp.where(mask[..., None, None], h, 0)

    last = w[..., -1, :]
    final = MLSTMState(
        carried[..., -1, None, None] * state.C + jnp.einsum("bhj,bhjd,bhje->bhde", last, k, v, precision=_HIGHEST),
        carried[..., -1, None] * state.n + jnp.einsum("bhj,bhjd->bhd", last, k, precision=_HIGHEST),
        m[..., -1] if gate == "exp" else state.m,
    )
    return h, final


def parallel_weights(
    i: Float[Array, "b h s"],
    f: Float[Array, "b h s"],
    m0: Float[Array, "b h"],
    *,
    reset: Bool[Array, "b s"] | None,
    mask: Bool[Array, "b s"] | None,
    gate: str,
) -> tuple[Float[Array, "b h t j"], Float[Array, "b h t"], Float[Array, "b h t"]]:
    """The weight of token j and of the entering state in the memory at t, and the stabiliser of its frame."""
    seq = i.shape[-1]
    log_f = log_forget_gate(f)
    log_i = i if gate == "exp" else jax.nn.log_sigmoid(i)
    segment = jnp.zeros((i.shape[0], 1, seq), jnp.int32)
    if mask is not None:
        valid = mask[:, None, :]
        reset = None if reset is None else reset & mask
        log_f, log_i = jnp.where(valid, log_f, 0), jnp.where(valid, log_i, -jnp.inf)
    # The stabiliser of a fresh sequence starts at 0 and decays with the forget gates, that of its first token included.
    decay_of_m = log_f
    m = _stabiliser(log_f, log_i, reset, m0) if gate == "exp" else jnp.zeros_like(log_f)
    if reset is not None:
        starts = reset[:, None, :]
        segment = jnp.cumsum(starts, axis=-1, dtype=jnp.int32)
        log_f = jnp.where(starts, 0, log_f)

    ones = jnp.ones((seq, seq), bool)
    same = jnp.tril(ones) & (segment[..., :, None] == segment[..., None, :])
    between = jnp.cumsum(jnp.where(jnp.tril(ones, -1), log_f[..., :, None], 0), axis=-2)  # over j < r <= t
    log_w = jnp.where(same, between + log_i[..., None, :], -jnp.inf)
    from_start = jnp.sum(jnp.where(same, decay_of_m[..., None, :], 0), axis=-1)
    if gate == "exp":
        from_start = from_start + jnp.where(segment == 0, m0[..., None], 0)
    carried = jnp.where(segment == 0, jnp.exp(from_start - m), 0)
    return jnp.exp(log_w - m[..., None]), carried, m


def _stabiliser(
    log_f: Float[Array, "b h s"],
    log_i: Float[Array, "b h s"],
    reset: Bool[Array, "b s"] | None,
    m0: Float[Array, "b h"],
) -> Float[Array, "b h s"]:
    """m_t = max(log f_t + m_{t-1}, log i_t), token by token.

    The maximum over all tokens of a row has the same value, but where several are equal it would share its gradient out
    among them evenly; the recurrence gives each maximum's two sides one half.
    """
    reset = jnp.zeros((log_f.shape[0], log_f.shape[-1]), bool) if reset is None else reset

    def body(m: Array, token: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        log_f, log_i, starts = token
        m = jnp.maximum(log_f + jnp.where(starts[:, None], 0, m), log_i)
        return m, m

    by_token = jnp.moveaxis(log_f, -1, 0), jnp.moveaxis(log_i, -1, 0), jnp.moveaxis(reset, -1, 0)
    return jnp.moveaxis(jax.lax.scan(body, m0, by_token)[1], 0, -1)
