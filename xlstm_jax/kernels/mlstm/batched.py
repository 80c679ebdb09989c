"""The mLSTM in chunks, all at once: for devices that a single chunk does not fill.

Only the states pass from chunk to chunk, in a scan of one multiply-add. What each chunk adds to the state comes before
it, what it makes of the state that enters comes after it, both for all chunks together.

Shape suffixes: c chunks, b batch, s seq, h heads, l tokens of a chunk, d dim_qk, e dim_v.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.mlstm.chunk import Walk, anchor, chunk_backward, chunk_forward, run_chunks
from xlstm_jax.kernels.mlstm.gates import Gates, gate_terms
from xlstm_jax.kernels.mlstm.state import MLSTMState

SIZE = 128
"""Tokens per chunk: on an H100, 256 is a few percent faster for heads of 64/128 and takes twice the memory; 64 takes a
third longer."""


def batched(
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
    """All tokens, in chunks of `chunk_size`, all chunks at once."""
    size = min(chunk_size, q.shape[1])
    terms = gate_terms(i, f, state.m, reset=reset, mask=mask, gate=gate, size=size)
    h, C, n = run_chunks(q, k, v, terms, state.C, state.n, normalize, eps, Walk(_forward, _backward))
    return h, MLSTMState(C, n, terms.m[-1, ..., -1] if gate == "exp" else state.m)


def _forward(
    q: Array, k: Array, v: Array, gates: Gates, C: Array, n: Array, normalize: bool, eps: float, keep: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array] | None]:
    """See `Walk`."""
    q_c, k_c, v_c = (_cut(x, gates, C.dtype) for x in (q, k, v))
    run: Callable[..., Any] = jax.vmap(partial(chunk_forward, normalize=normalize, eps=eps))
    inputs = q_c * q.shape[-1] ** -0.5, k_c, v_c, gates
    # From an empty state a chunk leaves what it adds; the outputs of this call are of no use and never computed.
    _, _, *added = run(*_zeros(C, n, len(q_c)), *inputs)
    (C, n), (C_in, n_in) = _pass_on((C, n), tuple(added), gates.carry)
    h, s, _, _ = run(C_in, n_in, *inputs)
    if gates.valid is not None:
        h = jnp.where(gates.valid[..., None], h, 0)
    return (_put(h, v), C, n), (C_in, n_in, s) if keep else None


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
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """See `Walk`."""
    q_c, k_c, v_c, dh_c = (_cut(x, gates, dC.dtype) for x in (q, k, v, dh))
    C_in, n_in, s = kept
    scale = q.shape[-1] ** -0.5
    run: Callable[..., Any] = jax.vmap(partial(chunk_backward, normalize=normalize, eps=eps))
    inputs = C_in, n_in, q_c * scale, k_c, v_c, gates, s, dh_c
    added = run(*_zeros(dC, dn, len(q_c)), *inputs)[:2]
    (dC, dn), leaving = _pass_on((dC, dn), added, gates.carry, reverse=True)
    _, _, dq, dk, dv, q_dq, k_dk, dm = run(*leaving, *inputs)
    # What enters a chunk is what leaves the one before.
    over_ends = jax.vmap(anchor)(C_in[1:], n_in[1:], *(x[:-1] for x in leaving))
    behind = jnp.concatenate([over_ends, at_end[None]])
    into_first = anchor(C_in[0], n_in[0], dC, dn)
    return (dC, dn, into_first, _put(dq * scale, q), _put(dk, k), _put(dv, v)), (q_dq, k_dk, dm, behind)


def _zeros(C: Array, n: Array, count: int) -> tuple[Array, Array]:
    return jnp.zeros((count, *C.shape), C.dtype), jnp.zeros((count, *n.shape), n.dtype)


def _pass_on(start: Any, added: Any, carry: Float[Array, "c b h"], *, reverse: bool = False) -> tuple[Any, Any]:
    """(C, n) behind the last chunk, and before each: a chunk turns a state into carry * state + added."""

    def body(state: tuple[Array, Array], chunk: tuple) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (C, n), (C_added, n_added, carry) = state, chunk
        return (carry[..., None, None] * C + C_added, carry[..., None] * n + n_added), state

    return jax.lax.scan(body, start, (*added, carry), reverse=reverse)


def _cut(x: Float[Array, "b s h d"], gates: Gates, dtype: jnp.dtype) -> Float[Array, "c b h l d"]:
    """The chunks, zero where they are masked; the last one, where it would reach over the end, begins earlier."""
    batch, seq, heads, dim = x.shape
    size = gates.m.shape[-1]
    if seq % size:
        x = jnp.concatenate([x[:, : seq // size * size], x[:, seq - size :]], axis=1)
    chunks = jnp.transpose(x.reshape(batch, len(gates.m), size, heads, dim), (1, 0, 3, 2, 4))
    # Selected, not multiplied: padding may hold anything, NaN included.
    return (chunks if gates.valid is None else jnp.where(gates.valid[..., None], chunks, 0)).astype(dtype)


def _put(chunks: Float[Array, "c b h l d"], like: Float[Array, "b s h d"]) -> Float[Array, "b s h d"]:
    """The inverse of `_cut`, in the shape and dtype of `like`; what two chunks share is of the first of them."""
    batch, seq, heads, dim = like.shape
    count, size = chunks.shape[0], chunks.shape[3]
    x = jnp.transpose(chunks.astype(like.dtype), (1, 0, 3, 2, 4)).reshape(batch, count * size, heads, dim)
    if seq % size:
        x = jnp.concatenate([x[:, : seq // size * size], x[:, x.shape[1] - seq % size :]], axis=1)
    return x
