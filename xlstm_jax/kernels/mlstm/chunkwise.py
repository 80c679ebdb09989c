"""The mLSTM chunk by chunk: linear in the sequence, exact gradients.

The derivation stands in README.md beside this file. The gradient is written by hand: the forward pass saves one state
per chunk, the backward pass recomputes what lies inside each. chunk.py has what a chunk computes; chunks_in_turn.py and
chunks_at_once.py take all of them in two ways, for two kinds of devices.

Shape suffixes: c chunks, b batch, h heads, l tokens of a chunk, d dim_qk, e dim_v.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.mlstm import chunks_at_once, chunks_in_turn
from xlstm_jax.kernels.mlstm.chunk import anchor, gates_of
from xlstm_jax.kernels.mlstm.gates import stabilisers
from xlstm_jax.kernels.mlstm.state import MLSTMState

IN_TURN_SIZE, AT_ONCE_SIZE = 64, 128
"""Tokens per chunk unless the caller says otherwise, forward and backward. In turn, on a CPU: the fastest of 32, 64,
128 and 256, or within a few percent of it, for heads from 32/64 to 256/512. At once, on an H100: 256 is a few percent
faster for heads of 64/128 and takes twice the memory; 64 takes a third longer."""


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
    at_once: bool = False,
) -> tuple[Float[Array, "b s h e"], MLSTMState]:
    """All tokens, `chunk_size` at a time; the chunks one after the other, or all `at_once`.

    Where the last chunk is not full it begins earlier, so that it is, and what it has in common with the chunk before
    is masked in it: nothing as large as the inputs has to be padded.
    """
    batch, seq = q.shape[:2]
    dtype = state.C.dtype
    size = min(chunk_size or (AT_ONCE_SIZE if at_once else IN_TURN_SIZE), seq)
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

    h, C, n = _run_chunks(q, k, v, log_i, log_f, starts, valid, m, m0, state.C, state.n, normalize, eps, at_once)
    return h, MLSTMState(C, n, m[-1, ..., -1] if gate == "exp" else state.m)


@partial(jax.custom_vjp, nondiff_argnums=(11, 12, 13))
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
    at_once: bool,
) -> tuple[Float[Array, "b s h e"], Float[Array, "b h d e"], Float[Array, "b h d"]]:
    """Outputs and final memory, with the frames (m0 and m) given from outside; log_f is 0 where a sequence starts."""
    gates = gates_of(log_i, log_f, starts, valid, m, m0)
    return _walk(at_once).forward(q, k, v, gates, C, n, normalize, eps, keep=False)[0]


def _walk(at_once: bool) -> ModuleType:
    return chunks_at_once if at_once else chunks_in_turn


def _run_chunks_fwd(q, k, v, log_i, log_f, starts, valid, m, m0, C, n, normalize, eps, at_once):
    gates = gates_of(log_i, log_f, starts, valid, m, m0)
    out, kept = _walk(at_once).forward(q, k, v, gates, C, n, normalize, eps, keep=True)
    return out, (q, k, v, log_i, log_f, starts, valid, m, m0, kept, out[1:])


def _run_chunks_bwd(normalize, eps, at_once, saved, cotangents):
    q, k, v, log_i, log_f, starts, valid, m, m0, kept, (C_end, n_end) = saved
    dh, dC, dn = cotangents
    at_end = anchor(C_end, n_end, dC, dn)
    gates = gates_of(log_i, log_f, starts, valid, m, m0)
    (dC, dn, dm0, dq, dk, dv), (q_dq, k_dk, dm, behind) = _walk(at_once).backward(
        q, k, v, dh, gates, kept, dC, dn, at_end, normalize, eps
    )
    # What passes over the border before token t, anchored by what passes over the end of its chunk.
    dlog_f = jax.lax.cumsum(q_dq - k_dk, axis=3, reverse=True) + behind[..., None]
    # The frame of the final state is the last m: a larger m means a smaller C.
    dm = dm.at[-1, ..., -1].add(-at_end)
    return dq, dk, dv, k_dk, dlog_f, None, None, dm, dm0, dC, dn


_run_chunks.defvjp(_run_chunks_fwd, _run_chunks_bwd)
