"""The mLSTM chunk by chunk, one after the other: linear in the sequence, little memory.

On a CPU all that a chunk needs stays in the cache. Queries, keys, values and their gradients stay in the layout of the
caller; a chunk is cut out, used and written back inside the loop. It is cut out one turn ahead: what is cut out inside
the turn that uses it, XLA fuses into every user, and on a CPU each of them then addresses its elements one by one, ten
times slower than from a buffer. Handed over by the loop, the cuts are buffers.

Shape suffixes: b batch, s seq, h heads, l tokens of a chunk, d dim_qk, e dim_v.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.mlstm.chunk import Walk, anchor, chunk_backward, chunk_forward, run_chunks
from xlstm_jax.kernels.mlstm.gates import Gates, gate_terms
from xlstm_jax.kernels.mlstm.state import MLSTMState

SIZE = 64
"""Tokens per chunk: on a CPU the fastest of 32, 64, 128 and 256, or within a few percent of it, for heads from 32/64 to
256/512, forward and backward."""


def chunkwise(
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
    chunk_size: int,
) -> tuple[Float[Array, "b s h e"], MLSTMState]:
    """All tokens, `chunk_size` at a time, the chunks one after the other."""
    size = min(chunk_size, q.shape[1])
    terms = gate_terms(i, f, state.m, reset=reset, mask=mask, gate=gate, size=size)
    h, C, n = run_chunks(q, k, v, terms, state.C, state.n, normalize, eps, Walk(_forward, _backward))
    return h, MLSTMState(C, n, terms.m[-1, ..., -1] if gate == "exp" else state.m)


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


def _cut(sources: list[_Held], index: Array, size: int, valid: Array | None, dtype: jnp.dtype) -> list[Array]:
    """Chunk `index` of (b, s, h, .) arrays as (b, h, l, .), zero where it is masked.

    The last chunk, where it would reach over the end, is moved back to end there: JAX clamps the start of a slice.
    """
    chunks = []
    for x in sources:
        cut = jax.lax.dynamic_slice_in_dim(x.bits, index * size, size, axis=1)
        chunk = jnp.swapaxes(_held(cut, x.dtype), 1, 2)
        # Selected, not multiplied: padding may hold anything, NaN included.
        chunks.append((chunk if valid is None else jnp.where(valid[..., None], chunk, 0)).astype(dtype))
    return chunks


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


@partial(jax.custom_jvp, nondiff_argnums=(6, 7, 8, 9))
def _forward(
    q: Array,
    k: Array,
    v: Array,
    gates: Gates,
    C: Array,
    n: Array,
    normalize: bool,
    eps: float,
    keep: bool,
    as_bits: bool = True,
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array] | None]:
    """See `Walk`; bits have no derivatives, so those are taken of the same without `as_bits`."""
    count, size, scale, dtype = gates.m.shape[0], gates.m.shape[-1], q.shape[-1] ** -0.5, C.dtype
    sources = [_hold(x, as_bits) for x in (q, k, v)]

    def inputs(index: Array) -> tuple:
        g = _at(gates, index)
        q_c, k_c, v_c = _cut(sources, index, size, g.valid, dtype)
        return q_c * scale, k_c, v_c, g

    def turn(state: tuple[tuple[Array, Array, Array], tuple], index: Array):
        (C, n, h), (q_c, k_c, v_c, g) = state
        h_c, s, *after = chunk_forward(C, n, q_c, k_c, v_c, g, normalize, eps)
        carry = (*after, _put(h, v.dtype, h_c, index, g.valid))
        return (carry, inputs(jnp.clip(index + 1, 0, count - 1))), (C, n, s) if keep else None

    start = (C, n, jnp.zeros_like(sources[2].bits)), inputs(jnp.asarray(0))
    ((C, n, h), _), kept = jax.lax.scan(turn, start, jnp.arange(count))
    return (_held(h, v.dtype), C, n), kept


@_forward.defjvp
def _forward_jvp(normalize, eps, keep, as_bits, primals, tangents):
    function = partial(_forward.fun, normalize=normalize, eps=eps, keep=keep, as_bits=False)
    return jax.jvp(function, primals, tangents)


@partial(jax.custom_jvp, nondiff_argnums=(9, 10, 11))
def _backward(
    q: Array,
    k: Array,
    v: Array,
    dh: Array,
    gates: Gates,
    kept: tuple[Array, Array, Array],
    dC: Array,
    dn: Array,
    at_end: Array,
    normalize: bool,
    eps: float,
    as_bits: bool = True,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """See `Walk`."""
    count, size, scale = gates.m.shape[0], gates.m.shape[-1], q.shape[-1] ** -0.5
    sources = [_hold(x, as_bits) for x in (q, k, v, dh)]

    def inputs(index: Array) -> tuple:
        g = _at(gates, index)
        q_c, k_c, v_c, dh_c = _cut(sources, index, size, g.valid, dC.dtype)
        C, n, s = _at(kept, index)
        return C, n, q_c * scale, k_c, v_c, g, s, dh_c

    def turn(state: tuple[tuple[Array, ...], tuple], index: Array):
        (dC, dn, behind, dq, dk, dv), (C, n, q_c, k_c, v_c, g, s, dh_c) = state
        dC, dn, dq_c, dk_c, dv_c, q_dq, k_dk, dm = chunk_backward(
            dC, dn, C, n, q_c, k_c, v_c, g, s, dh_c, normalize, eps
        )
        # A last chunk that was moved back writes zeros over what it shares with the one before, which comes next.
        grads = (
            _put(dq, q.dtype, dq_c * scale, index),
            _put(dk, k.dtype, dk_c, index),
            _put(dv, v.dtype, dv_c, index),
        )
        carry = (dC, dn, anchor(C, n, dC, dn), *grads)
        return (carry, inputs(jnp.clip(index - 1, 0, count - 1))), (q_dq, k_dk, dm, behind)

    start = (dC, dn, at_end, *(jnp.zeros_like(x.bits) for x in sources[:3])), inputs(jnp.asarray(count - 1))
    ((*passing, dq, dk, dv), _), by_chunk = jax.lax.scan(turn, start, jnp.arange(count), reverse=True)
    return (*passing, _held(dq, q.dtype), _held(dk, k.dtype), _held(dv, v.dtype)), by_chunk


@_backward.defjvp
def _backward_jvp(normalize, eps, as_bits, primals, tangents):
    return jax.jvp(partial(_backward.fun, normalize=normalize, eps=eps, as_bits=False), primals, tangents)
