"""The chunks one after the other: little memory, and on a CPU all that a chunk needs stays in the cache.

Queries, keys, values and their gradients stay in the layout of the caller; a chunk is cut out, used and written back
inside the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xlstm_jax.kernels.mlstm.chunk import Gates, anchor, chunk_backward, chunk_forward


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


def forward(
    q: Array, k: Array, v: Array, gates: Gates, C: Array, n: Array, normalize: bool, eps: float, *, keep: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array] | None]:
    """((h, C, n), (entering C and n of all chunks, s)); the second part is None unless `keep`."""
    return _with_bits(partial(_forward, normalize=normalize, eps=eps, keep=keep))(q, k, v, gates, C, n)


def _forward(q, k, v, gates: Gates, C, n, *, normalize, eps, keep, as_bits):
    count, size, scale, dtype = gates.m.shape[0], gates.m.shape[-1], q.shape[-1] ** -0.5, C.dtype
    sources = [_hold(x, as_bits) for x in (q, k, v)]

    def inputs(index: Array) -> tuple:
        g = _at(gates, index)
        q_c, k_c, v_c = (_cut(x, index, size, g.valid, dtype) for x in sources)
        return q_c * scale, k_c, v_c, g

    def body(carry: tuple[Array, Array, Array], index: Array, ready: tuple):
        C, n, h = carry
        q_c, k_c, v_c, g = ready
        h_c, s, *after = chunk_forward(C, n, q_c, k_c, v_c, g, normalize, eps)
        return (*after, _put(h, v.dtype, h_c, index, g.valid)), (C, n, s) if keep else None

    (C, n, h), kept = _scan_chunks(body, (C, n, jnp.zeros_like(sources[2].bits)), inputs, count)
    return (_held(h, v.dtype), C, n), kept


def backward(
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
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """(dC, dn, what passes into the first chunk, dq, dk, dv) and, of all chunks, q.dq, k.dk, dm and what passes over
    their ends; `at_end` is what passes over the last one's."""
    return _with_bits(partial(_backward, normalize=normalize, eps=eps))(q, k, v, dh, gates, kept, dC, dn, at_end)


def _backward(q, k, v, dh, gates: Gates, kept, dC, dn, at_end, *, normalize, eps, as_bits):
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
        dC, dn, dq_c, dk_c, dv_c, q_dq, k_dk, dm = chunk_backward(
            dC, dn, C, n, q_c, k_c, v_c, g, s, dh_c, normalize, eps
        )
        # A last chunk that was moved back writes zeros over what it shares with the one before, which comes next.
        grads = (
            _put(dq, q.dtype, dq_c * scale, index),
            _put(dk, k.dtype, dk_c, index),
            _put(dv, v.dtype, dv_c, index),
        )
        return (dC, dn, anchor(C, n, dC, dn), *grads), (q_dq, k_dk, dm, behind)

    start = (dC, dn, at_end, *(jnp.zeros_like(x.bits) for x in sources[:3]))
    (*passing, dq, dk, dv), by_chunk = _scan_chunks(body, start, inputs, count, reverse=True)
    return (*passing, _held(dq, q.dtype), _held(dk, k.dtype), _held(dv, v.dtype)), by_chunk
