"""The mLSTM chunk by chunk: linear in the sequence, one scan whose body holds a whole chunk, exact gradients.

The derivation stands in README.md beside this file. The gradient is written by hand: the forward pass saves one state
per chunk, the backward pass walks the chunks in reverse and recomputes what lies inside each. Queries, keys, values and
their gradients stay in the layout of the caller; a chunk is cut out, used and written back inside the loop.

Shape suffixes: c chunks, b batch, h heads, l (or t for a query's, j for a key's) tokens, d dim_qk, e dim_v.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.mlstm.gates import exact_cumsum, stabilisers
from xlstm_jax.kernels.mlstm.state import MLSTMState, normaliser_floor

CHUNK_SIZE = 64
"""Tokens per chunk unless the caller says otherwise: forward and backward, the fastest of 32, 64, 128 and 256, or
within a few percent of it, for heads from 32/64 to 256/512 on a CPU."""


def mlstm_chunkwise(
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
    chunk_size: int | None = None,
) -> tuple[Float[Array, "b s h e"], MLSTMState]:
    """All tokens, `chunk_size` at a time.

    Where the last chunk is not full it begins earlier, so that it is, and what it has in common with the chunk before
    is masked in it: nothing as large as the inputs has to be padded.
    """
    batch, seq = q.shape[:2]
    dtype = state.C.dtype
    size = min(chunk_size or CHUNK_SIZE, seq)
    shared = -seq % size
    if shared and mask is None:
        mask = jnp.ones((batch, seq), bool)

    def by_chunk(x: Array) -> Array:  # (b, s, h) -> (c, b, h, l)
        if shared:
            x = jnp.concatenate([x[:, : seq // size * size], x[:, seq - size :]], axis=1)
        return jnp.moveaxis(x.reshape(batch, -1, size, x.shape[-1]), (1, 3), (0, 2))

    i, f = by_chunk(i.astype(dtype)), by_chunk(f.astype(dtype))
    valid = starts = None
    if mask is not None:
        valid = by_chunk(mask[..., None])
        valid = valid.at[-1, ..., :shared].set(False)
        i, f = jnp.where(valid, i, 0), jnp.where(valid, f, 0)
    log_f = jax.nn.log_sigmoid(f)
    log_i = i if gate == "exp" else jax.nn.log_sigmoid(i)
    if valid is not None:
        log_f, log_i = jnp.where(valid, log_f, 0), jnp.where(valid, log_i, -jnp.inf)
    decay, write = log_f, log_i
    if reset is not None:
        starts = by_chunk(reset[..., None])
        starts = starts if valid is None else starts & valid
        # A fresh sequence has m = 0 before its first token and nothing to decay but that.
        decay, write = jnp.where(starts, -jnp.inf, log_f), jnp.where(starts, jnp.maximum(log_f, log_i), log_i)
        log_f = jnp.where(starts, 0, log_f)
    if gate == "exp":
        m0, m = state.m, stabilisers(decay, write, state.m)
    else:
        m0, m = jnp.zeros_like(state.m), jnp.zeros_like(log_i)

    h, C, n = _run_chunks(q, k, v, log_i, log_f, starts, valid, m, m0, state.C, state.n, normalize, eps)
    return h, MLSTMState(C, n, m[-1, ..., -1] if gate == "exp" else state.m)


# ---------------------------------------------------------------------------------------------------------------------
# One chunk
# ---------------------------------------------------------------------------------------------------------------------


class _Gates(NamedTuple):
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


def _gates(log_i: Array, log_f: Array, starts: Array | None, valid: Array | None, m: Array, m0: Array) -> _Gates:
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
    return _Gates(log_i, high, low, segment, valid, m, enter, leave, enter[..., -1])


def _inner_weights(g: _Gates) -> Float[Array, "b h t j"]:
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


def _chunk_forward(
    C: Array, n: Array, q: Array, k: Array, v: Array, g: _Gates, normalize: bool, eps: float
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


def _chunk_backward(
    dC: Array,
    dn: Array,
    C: Array,
    n: Array,
    q: Array,
    k: Array,
    v: Array,
    g: _Gates,
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


# ---------------------------------------------------------------------------------------------------------------------
# All chunks
# ---------------------------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(11, 12))
def _run_chunks(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h e"],
    log_i: Float[Array, "c b h l"],
    log_f: Float[Array, "c b h l"],
    starts: Bool[Array, "c b 1 l"] | None,
    valid: Bool[Array, "c b 1 l"] | None,
    m: Float[Array, "c b h l"],
    m0: Float[Array, "b h"],
    C: Float[Array, "b h d e"],
    n: Float[Array, "b h d"],
    normalize: bool,
    eps: float,
) -> tuple[Float[Array, "b s h e"], Float[Array, "b h d e"], Float[Array, "b h d"]]:
    """Outputs and final memory, with the frames (m0 and m) given from outside; log_f is 0 where a sequence starts."""
    return _scan_forward(q, k, v, _gates(log_i, log_f, starts, valid, m, m0), C, n, normalize, eps, keep=False)[0]


class _Held(NamedTuple):
    """An array that chunks are cut out of or put into inside a loop.

    XLA's CPU back end has no slices of 16-bit floats: of one taken in a loop it makes a float32 copy of the whole
    array, and an update passes over the whole array in every turn. So their bits are held, as whole numbers.
    """

    bits: Array  # b s h ., of `dtype` or its bits
    dtype: jnp.dtype


def _hold(x: Array, as_bits: bool) -> _Held:
    is_narrow = as_bits and x.dtype.itemsize == 2
    return _Held(jax.lax.bitcast_convert_type(x, jnp.uint16) if is_narrow else x, x.dtype)


def _held(bits: Array, dtype: jnp.dtype) -> Array:
    """The floats that were held as `bits`."""
    return bits if bits.dtype == dtype else jax.lax.bitcast_convert_type(bits, dtype)


def _with_bits(function: Callable) -> Callable:
    """`function(*arrays, as_bits=True)`, whose derivatives are those for False: bits have none."""
    with_bits = jax.custom_jvp(partial(function, as_bits=True))
    with_bits.defjvp(lambda primals, tangents: jax.jvp(partial(function, as_bits=False), primals, tangents))
    return with_bits


def _cut(x: _Held, index: Array, size: int, valid: Array | None, dtype: jnp.dtype) -> Array:
    """Chunk `index` of a (b, s, h, .) array as (b, h, l, .), zero where it is masked.

    The last chunk, where it would reach over the end, is moved back to end there: JAX clamps the start of a slice.
    """
    cut = jax.lax.dynamic_slice_in_dim(x.bits, index * size, size, axis=1)
    chunk = jnp.swapaxes(_held(cut, x.dtype), 1, 2)
    # Selected, not multiplied: padding may hold anything, NaN included.
    return (chunk if valid is None else jnp.where(valid[..., None], chunk, 0)).astype(dtype)


def _at(tree: Any, index: Array) -> Any:
    """One chunk of arrays whose first axis counts the chunks."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False), tree)


def _put(bits: Array, dtype: jnp.dtype, chunk: Array, index: Array, valid: Array | None = None) -> Array:
    """The inverse of `_cut`, in place inside a loop; what is masked by `valid` stays as it is."""
    chunk = _hold(jnp.swapaxes(chunk, 1, 2).astype(dtype), bits.dtype != dtype).bits
    start = index * chunk.shape[1]
    if valid is not None:
        before = jax.lax.dynamic_slice_in_dim(bits, start, chunk.shape[1], axis=1)
        chunk = jnp.where(jnp.swapaxes(valid, 1, 2)[..., None], chunk, before)
    return jax.lax.dynamic_update_slice_in_dim(bits, chunk, start, axis=1)


def _scan_chunks(body: Callable, carry: Any, inputs: Callable, count: int, *, reverse: bool = False) -> tuple[Any, Any]:
    """`lax.scan` of `body(carry, index, inputs(index))` over chunks, each chunk's inputs cut out one turn ahead.

    What is cut out inside the turn that uses it, XLA fuses into every user: on a CPU each of them then addresses its
    elements one by one, ten times slower than from a buffer. Handed over by the loop, the cuts are buffers.
    """

    def turn(state: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], Any]:
        carry, ready = state
        carry, out = body(carry, index, ready)
        ahead = jnp.clip(index + (-1 if reverse else 1), 0, count - 1)
        return (carry, inputs(ahead)), out

    first = jnp.asarray(count - 1 if reverse else 0)
    (carry, _), out = jax.lax.scan(turn, (carry, inputs(first)), jnp.arange(count), reverse=reverse)
    return carry, out


def _scan_forward(q, k, v, gates: _Gates, C, n, normalize, eps, *, keep: bool):
    """((h, C, n), (entering states of all chunks, s)); the second part is None unless `keep`."""
    scan = partial(_scan_forward_as, normalize=normalize, eps=eps, keep=keep)
    return _with_bits(scan)(q, k, v, gates, C, n)


def _scan_forward_as(q, k, v, gates: _Gates, C, n, *, normalize, eps, keep, as_bits):
    count, size, scale, dtype = gates.m.shape[0], gates.m.shape[-1], q.shape[-1] ** -0.5, C.dtype
    sources = [_hold(x, as_bits) for x in (q, k, v)]

    def inputs(index: Array) -> tuple:
        g = _at(gates, index)
        q_c, k_c, v_c = (_cut(x, index, size, g.valid, dtype) for x in sources)
        return q_c * scale, k_c, v_c, g

    def body(carry: tuple[Array, Array, Array], index: Array, ready: tuple):
        C, n, h = carry
        q_c, k_c, v_c, g = ready
        h_c, s, *after = _chunk_forward(C, n, q_c, k_c, v_c, g, normalize, eps)
        return (*after, _put(h, v.dtype, h_c, index, g.valid)), (C, n, s) if keep else None

    (C, n, h), kept = _scan_chunks(body, (C, n, jnp.zeros_like(sources[2].bits)), inputs, count)
    return (_held(h, v.dtype), C, n), kept


def _run_chunks_fwd(q, k, v, log_i, log_f, starts, valid, m, m0, C, n, normalize, eps):
    gates = _gates(log_i, log_f, starts, valid, m, m0)
    out, kept = _scan_forward(q, k, v, gates, C, n, normalize, eps, keep=True)
    return out, (q, k, v, log_i, log_f, starts, valid, m, m0, kept, out[1:])


def _run_chunks_bwd(normalize, eps, saved, cotangents):
    q, k, v, log_i, log_f, starts, valid, m, m0, kept, (C_end, n_end) = saved
    dh, dC, dn = cotangents
    at_end = _anchor(C_end, n_end, dC, dn)
    scan = partial(_scan_backward_as, normalize=normalize, eps=eps)
    gates = _gates(log_i, log_f, starts, valid, m, m0)
    (dC, dn, dm0, dq, dk, dv), (q_dq, k_dk, dm, behind) = _with_bits(scan)(q, k, v, dh, gates, kept, dC, dn, at_end)
    # What passes over the border before token t, anchored by what passes over the end of its chunk.
    dlog_f = jax.lax.cumsum(q_dq - k_dk, axis=3, reverse=True) + behind[..., None]
    # The frame of the final state is the last m: a larger m means a smaller C.
    dm = dm.at[-1, ..., -1].add(-at_end)
    return dq, dk, dv, k_dk, dlog_f, None, None, dm, dm0, dC, dn


def _anchor(C: Array, n: Array, dC: Array, dn: Array) -> Array:
    return _product("bhde,bhde->bh", C, dC) + _product("bhd,bhd->bh", n, dn)


def _scan_backward_as(q, k, v, dh, gates: _Gates, kept, dC, dn, at_end, *, normalize, eps, as_bits):
    """(dC, dn, what passes into the first chunk, dq, dk, dv) and, of all chunks, q.dq, k.dk, dm and what passes over
    their ends."""
    count, size, scale = gates.m.shape[0], gates.m.shape[-1], q.shape[-1] ** -0.5
    sources = [_hold(x, as_bits) for x in (q, k, v, dh)]

    def inputs(index: Array) -> tuple:
        g = _at(gates, index)
        q_c, k_c, v_c, dh_c = (_cut(x, index, size, g.valid, dC.dtype) for x in sources)
        C, n, s = _at(kept, index)
        return C, n, q_c * scale, k_c, v_c, g, s, dh_c

    def body(carry: tuple[Array, ...], index: Array, ready: tuple):
        dC, dn, behind, dq, dk, dv = carry
        C, n, q_c, k_c, v_c, g, s, dh_c = ready
        dC, dn, dq_c, dk_c, dv_c, q_dq, k_dk, dm = _chunk_backward(
            dC, dn, C, n, q_c, k_c, v_c, g, s, dh_c, normalize, eps
        )
        # A last chunk that was moved back writes zeros over what it shares with the one before, which comes next.
        grads = (
            _put(dq, q.dtype, dq_c * scale, index),
            _put(dk, k.dtype, dk_c, index),
            _put(dv, v.dtype, dv_c, index),
        )
        return (dC, dn, _anchor(C, n, dC, dn), *grads), (q_dq, k_dk, dm, behind)

    start = (dC, dn, at_end, *(jnp.zeros_like(x.bits) for x in sources[:3]))
    (*passing, dq, dk, dv), by_chunk = _scan_chunks(body, start, inputs, count, reverse=True)
    return (*passing, _held(dq, q.dtype), _held(dk, k.dtype), _held(dv, v.dtype)), by_chunk


_run_chunks.defvjp(_run_chunks_fwd, _run_chunks_bwd)
