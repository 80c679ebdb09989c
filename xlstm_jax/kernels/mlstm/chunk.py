"""The gradient of the chunkwise forms, by hand: what one chunk computes, forward and backward, and what joins them.

README.md beside this file has the equations. The forward pass saves one state per chunk, the backward pass recomputes
what lies inside each. In which order the chunks are taken is a `Walk`, of which chunkwise.py and batched.py have one
each, for two kinds of devices.

Shape suffixes: b batch, h heads, l (or t for a query's, j for a key's) tokens of the chunk, d dim_qk, e dim_v;
c chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xlstm_jax.kernels.mlstm.gates import Gates, GateTerms, gates_of, normaliser_floor


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


class Walk(NamedTuple):
    """An order to take the chunks in.

    Attributes:
        forward: (q, k, v, gates, C, n, normalize, eps, keep) -> ((h, C, n), (entering C and n of all chunks, s)), the
            second part None unless `keep`.
        backward: (q, k, v, dh, gates, kept, dC, dn, at_end, normalize, eps) -> (dC, dn, what passes into the first
            chunk, dq, dk, dv) and, of all chunks, (q.dq, k.dk, dm, what passes over their ends); `kept` is what
            `forward` kept, `at_end` what passes over the last one's end.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]


class _Saved(NamedTuple):
    """What the backward pass needs."""

    q: Array
    k: Array
    v: Array
    terms: GateTerms
    kept: tuple[Array, Array, Array]
    C: Array  # behind the last chunk
    n: Array


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def run_chunks(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h e"],
    terms: GateTerms,
    C: Float[Array, "b h d e"],
    n: Float[Array, "b h d"],
    normalize: bool,
    eps: float,
    walk: Walk,
) -> tuple[Float[Array, "b s h e"], Float[Array, "b h d e"], Float[Array, "b h d"]]:
    """Outputs and final memory, with the gates and their frames (m0 and m) given from outside."""
    return walk.forward(q, k, v, gates_of(terms), C, n, normalize, eps, False)[0]


def _run_chunks_fwd(q, k, v, terms, C, n, normalize, eps, walk):
    out, kept = walk.forward(q, k, v, gates_of(terms), C, n, normalize, eps, True)
    return out, _Saved(q, k, v, terms, kept, *out[1:])


def _run_chunks_bwd(normalize, eps, walk, saved: _Saved, cotangents):
    dh, dC, dn = cotangents
    at_end = anchor(saved.C, saved.n, dC, dn)
    (dC, dn, dm0, dq, dk, dv), (q_dq, k_dk, dm, behind) = walk.backward(
        saved.q, saved.k, saved.v, dh, gates_of(saved.terms), saved.kept, dC, dn, at_end, normalize, eps
    )
    # What passes over the border before token t, anchored by what passes over the end of its chunk.
    dlog_f = jax.lax.cumsum(q_dq - k_dk, axis=3, reverse=True) + behind[..., None]
    # The frame of the final state is the last m: a larger m means a smaller C.
    dm = dm.at[-1, ..., -1].add(-at_end)
    return dq, dk, dv, GateTerms(k_dk, dlog_f, None, None, dm, dm0), dC, dn


run_chunks.defvjp(_run_chunks_fwd, _run_chunks_bwd)
