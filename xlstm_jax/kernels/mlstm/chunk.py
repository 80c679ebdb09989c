"""What one chunk of the mLSTM computes, forward and backward; README.md beside this file has the equations.

Shape suffixes: b batch, h heads, l (or t for a query's, j for a key's) tokens of the chunk, d dim_qk, e dim_v.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xlstm_jax.kernels.mlstm.gates import exact_cumsum
from xlstm_jax.kernels.mlstm.state import normaliser_floor


class Gates(NamedTuple):
    """All that one chunk, or with a leading axis every chunk, needs to know of its gates."""

    log_i: Array  # b h l
    decay_high: Array  # b h l, running sum of log f, and what rounding took from it
    decay_low: Array
    segment: Array | None  # b 1 l, number of resets up to and including the token
    valid: Array | None  # b 1 l, false at masked tokens; None if there are none
    m: Array  # b h l
    enter: Array  # b h l, weight of the entering state in the output at a token
    leave: Array  # b h l, weight of a token in the leaving state
    carry: Array  # b h, weight of the entering state in the leaving state


def gates_of(log_i: Array, log_f: Array, starts: Array | None, valid: Array | None, m: Array, m0: Array) -> Gates:
    high, low = exact_cumsum(log_f)
    m_before = jnp.concatenate([m0[None], m[:-1, ..., -1]])
    enter = jnp.exp((m_before[..., None] - m) + high + low)
    to_end = (high[..., -1:] - high) + (low[..., -1:] - low)
    leave = jnp.exp(to_end + (log_i - m[..., -1:]))
    segment = None
    if starts is not None:
        segment = jnp.cumsum(starts, axis=-1, dtype=jnp.int32)
        enter = jnp.where(segment == 0, enter, 0)
        leave = jnp.where(segment == segment[..., -1:], leave, 0)
    return Gates(log_i, high, low, segment, valid, m, enter, leave, enter[..., -1])


def _inner_weights(g: Gates) -> Float[Array, "b h t j"]:
    """The weight of token j in the output at t."""
    size = g.m.shape[-1]
    visible = jnp.tril(jnp.ones((size, size), bool))
    if g.segment is not None:
        visible = visible & (g.segment[..., :, None] == g.segment[..., None, :])
    high = g.decay_high[..., :, None] - g.decay_high[..., None, :]
    low = g.decay_low[..., :, None] - g.decay_low[..., None, :]
    log_w = (high + low) + (g.log_i[..., None, :] - g.m[..., :, None])
    return jnp.exp(jnp.where(visible, log_w, -jnp.inf))


def _product(spec: str, *operands: Array) -> Array:
    """A sum of products at full precision.

    Also where no matrix is involved: on a CPU, XLA fuses a product with a sum into code twenty times slower than its
    dot product when an axis (the batch) has size one.
    """
    return jnp.einsum(spec, *operands, precision=jax.lax.Precision.HIGHEST)


def chunk_forward(
    C: Array, n: Array, q: Array, k: Array, v: Array, g: Gates, normalize: bool, eps: float
) -> tuple[Array, Array, Array, Array]:
    """The chunk's outputs, the dot products s of queries and normaliser, and the state behind the chunk.

    q (scaled), k and v are (b h l .).
    """
    inner, similar = _inner_weights(g), _product("bhtd,bhjd->bhtj", q, k)
    scores = similar * inner
    q_in = q * g.enter[..., None]
    h = _product("bhtj,bhje->bhte", scores, v) + _product("bhtd,bhde->bhte", q_in, C)
    s = jnp.zeros_like(g.m)
    if normalize:
        s = _product("bhtj,bhtj->bht", similar, inner) + _product("bhtd,bhd->bht", q_in, n)
        h = h / _denominator(s, g.m, eps)[..., None]
    k_out = k * g.leave[..., None]
    C = g.carry[..., None, None] * C + _product("bhjd,bhje->bhde", k_out, v)
    n = g.carry[..., None] * n + _product("bhjd,bhj->bhd", k, g.leave)
    return h, s, C, n


def _denominator(s: Array, m: Array, eps: float) -> Array:
    return jnp.maximum(jnp.abs(s), normaliser_floor(m)) + eps


def chunk_backward(
    dC: Array,
    dn: Array,
    C: Array,
    n: Array,
    q: Array,
    k: Array,
    v: Array,
    g: Gates,
    s: Array,
    dh: Array,
    normalize: bool,
    eps: float,
) -> tuple[Array, Array, Array, Array, Array, Array, Array, Array]:
    """Cotangents of the entering state, then dq, dk, dv, and per token q.dq, k.dk and dm.

    Args:
        dC, dn: cotangents of the leaving state, in its frame.
        C, n: the entering state.
        dh: cotangent of the chunk's outputs.
    """
    inner = _inner_weights(g)
    scores = _product("bhtd,bhjd->bhtj", q, k) * inner
    dnum = dh / _denominator(s, g.m, eps)[..., None] if normalize else dh
    dinner = _product("bhte,bhje->bhtj", dnum, v)
    from_state = _product("bhte,bhde->bhtd", dnum, C)
    q_in = q * g.enter[..., None]
    # dh . h, from products that are needed anyway.
    q_dq = _product("bhtj,bhtj->bht", dinner, scores) + _product("bhtd,bhtd->bht", from_state, q_in)
    dm = jnp.zeros_like(q_dq)
    if normalize:
        per_h = -q_dq / _denominator(s, g.m, eps)
        size, floor = jnp.abs(s), normaliser_floor(g.m)
        above = jnp.where(size > floor, 1.0, jnp.where(size == floor, 0.5, 0.0))
        ds, dm = per_h * jnp.sign(s) * above, per_h * eps
        dinner = dinner + ds[..., None]
        from_state = from_state + ds[..., None] * n[..., None, :]
        q_dq = q_dq + ds * s
    to_state = _product("bhje,bhde->bhjd", v, dC) + dn[..., None, :]
    k_out = k * g.leave[..., None]
    k_dk = _product("bhtj,bhtj->bhj", dinner, scores) + _product("bhjd,bhjd->bhj", to_state, k_out)
    dinner = dinner * inner
    dq = _product("bhtj,bhjd->bhtd", dinner, k) + g.enter[..., None] * from_state
    dk = _product("bhtj,bhtd->bhjd", dinner, q) + g.leave[..., None] * to_state
    dv = _product("bhtj,bhte->bhje", scores, dnum) + _product("bhjd,bhde->bhje", k_out, dC)

    dC = g.carry[..., None, None] * dC + _product("bhtd,bhte->bhde", q_in, dnum)
    dn = g.carry[..., None] * dn
    if normalize:
        dn = dn + _product("bhtd,bht->bhd", q_in, ds)
    return dC, dn, dq, dk, dv, q_dq, k_dk, dm


def anchor(C: Array, n: Array, dC: Array, dn: Array) -> Array:
    return _product("bhde,bhde->bh", C, dC) + _product("bhd,bhd->bh", n, dn)
