"""The sLSTM with its own gradient: in the loops over time stands nothing but what has to.

Forward, the loop holds the recurrent product R y and the gates. Backward, all that depends on saved values alone is
computed for the whole sequence at once; the reverse loop holds multiply-adds and the product with R^T; the gradient of
R is one product over all tokens after it. README.md beside this file derives the equations.

The loops run over arrays laid out (seq, heads, batch, ...), so that R y is one batched matrix product that nothing has
to be transposed for.
Shape suffixes: s seq, h heads, b batch, d dim, g gates; k is a head's gates side by side, 4 d wide.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.slstm.recurrent import Options, clip_output, with_bias
from xlstm_jax.kernels.slstm.state import GATES, SLSTMState

UNROLL = 1
"""Tokens per turn of the loops: 1 was fastest on CPUs, forward and backward (see benchmarks/slstm.py)."""


def fused(
    wx: Float[Array, "b s g h d"],
    r: Float[Array, "g h d d"],
    b: Float[Array, "g h d"],
    state: SLSTMState,
    *,
    reset: Bool[Array, "b s"] | None,
    mask: Bool[Array, "b s"] | None,
    options: Options,
    unroll: int,
) -> tuple[Float[Array, "b s h d"], SLSTMState]:
    """All tokens; equal to `recurrent`, gradients too."""
    if mask is not None:
        # Whatever stands in padding, NaN included, reaches no gradient.
        wx = jnp.where(mask[:, :, None, None, None], wx, 0)
        reset = None if reset is None else reset & mask
    reset, mask = (None if x is None else jnp.swapaxes(x, 0, 1)[:, None, :, None] for x in (reset, mask))
    dtype = state.c.dtype
    y, final = _run(
        _time_first(with_bias(wx, b, dtype)),
        jnp.transpose(r, (1, 3, 0, 2)).reshape(*r.shape[1:3], len(GATES) * r.shape[-1]),
        SLSTMState(*(jnp.swapaxes(x, 0, 1) for x in state)),
        reset,
        mask,
        options,
        unroll,
    )
    if mask is not None:
        y = jnp.where(mask, y, 0)
    return jnp.transpose(y, (2, 0, 1, 3)).astype(wx.dtype), SLSTMState(*(jnp.swapaxes(x, 0, 1) for x in final))


def _time_first(wx: Float[Array, "b s g h d"]) -> Float[Array, "s h b k"]:
    batch, seq, gates, heads, dim = wx.shape
    return jnp.transpose(wx, (1, 3, 0, 2, 4)).reshape(seq, heads, batch, gates * dim)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _run(
    x: Float[Array, "s h b k"],
    r: Float[Array, "h d k"],
    state: SLSTMState,
    reset: Bool[Array, "s 1 b 1"] | None,
    mask: Bool[Array, "s 1 b 1"] | None,
    options: Options,
    unroll: int,
) -> tuple[Float[Array, "s h b d"], SLSTMState]:
    """Outputs and final state, the latter (heads, batch, dim), from x = W x + b; at masked tokens y is the last one."""
    return _scan_forward(x, r, state, reset, mask, options, unroll, keep=False)[0]


class _Kept(NamedTuple):
    """What the backward pass needs of every token: pre-activations and, a reset done, the state before it."""

    raw: Array  # s h b k
    c: Array  # s h b d
    n: Array
    m: Array


def _scan_forward(x, r, state, reset, mask, options, unroll, *, keep: bool) -> tuple[tuple[Array, SLSTMState], Any]:
    """((y, final state), `_Kept`); the second part is None unless `keep`."""
    r = r.astype(options.product_dtype)

    def body(state: SLSTMState, xs: tuple[Array, Array | None, Array | None]):
        x, reset, mask = xs
        if reset is not None:
            state = _where(~reset, state)
        raw = x + _by_head("hbd,hdk->hbk", state.y.astype(r.dtype), r, x.dtype)
        g = _gates(raw, state.n, state.m)
        c = g.decay * state.c + g.write * g.cell_input
        n = g.decay * state.n + g.write
        new = SLSTMState(clip_output(g.out * c / n, options), c, n, g.m)
        if mask is not None:
            new = _where(mask, new, state)
        return new, (new.y, _Kept(raw, state.c, state.n, state.m) if keep else None)

    final, (y, kept) = lax.scan(body, state, (x, reset, mask), unroll=unroll)
    return (y, final), kept


def _where(condition: Array, state: SLSTMState, other: SLSTMState | None = None) -> SLSTMState:
    """The one or the other, or zeros."""
    if other is None:
        return SLSTMState(*(jnp.where(condition, x, 0) for x in state))
    return SLSTMState(*(jnp.where(condition, x, y) for x, y in zip(state, other, strict=True)))


class _Gates(NamedTuple):
    decay: Array
    write: Array
    cell_input: Array  # tanh(raw_z)
    out: Array  # sigmoid(raw_o)
    m: Array
    m_to_i: Array  # dm / d raw_i: 1, 0 or, where both terms of the maximum are equal, a half


def _gates(raw: Array, n: Array, m: Array) -> _Gates:
    """The gates of tokens with these pre-activations that meet a state with this n and m."""
    raw_i, raw_f, raw_z, raw_o = jnp.split(raw, len(GATES), axis=-1)
    log_f, fresh = jax.nn.log_sigmoid(raw_f) + m, n == 0
    m = jnp.where(fresh, raw_i, jnp.maximum(raw_i, log_f))
    m_to_i = jnp.where(fresh | (raw_i > log_f), 1, jnp.where(raw_i == log_f, 0.5, 0)).astype(m.dtype)
    decay, write = jnp.where(fresh, 0, jnp.exp(log_f - m)), jnp.exp(raw_i - m)
    return _Gates(decay, write, jnp.tanh(raw_z), jax.nn.sigmoid(raw_o), m, m_to_i)


def _by_head(spec: str, a: Array, b: Array, dtype: Any) -> Array:
    return jnp.einsum(spec, a, b, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)


class _Factors(NamedTuple):
    """By what the reverse loop multiplies, each (s h b d); every one follows from `_Kept` alone."""

    y_to_c: Array  # dy / dc
    y_to_n: Array
    y_to_o: Array  # dy / d raw_o
    decay: Array
    write: Array
    cell_input: Array
    c_to_z: Array  # dc / d raw_z
    c: Array  # before the token
    n: Array
    f: Array  # d log sigmoid(raw_f) / d raw_f
    m_to_i: Array


def _factors(kept: _Kept, options: Options) -> _Factors:
    _, raw_f, _, raw_o = jnp.split(kept.raw, len(GATES), axis=-1)
    g = _gates(kept.raw, kept.n, kept.m)
    c, n = g.decay * kept.c + g.write * g.cell_input, g.decay * kept.n + g.write
    y_to_c = g.out / n
    if options.forward_clipval is not None:
        y_to_c = jnp.where(jnp.abs(y_to_c * c) > options.forward_clipval, 0, y_to_c)
    y = y_to_c * c
    return _Factors(
        y_to_c=y_to_c,
        y_to_n=-y / n,
        y_to_o=y * jax.nn.sigmoid(-raw_o),
        decay=g.decay,
        write=g.write,
        cell_input=g.cell_input,
        c_to_z=g.write * (1 - jnp.square(g.cell_input)),
        c=kept.c,
        n=kept.n,
        f=jax.nn.sigmoid(-raw_f),
        m_to_i=g.m_to_i,
    )


def _run_fwd(x, r, state, reset, mask, options, unroll):
    out, kept = _scan_forward(x, r, state, reset, mask, options, unroll, keep=True)
    return out, (r, state.y, out[0], kept, reset, mask)


def _run_bwd(options: Options, unroll: int, saved: tuple, cotangents: tuple[Array, SLSTMState]):
    r, y_start, y, kept, reset, mask = saved
    # Transposed once, out of the loop's way.
    r_back = lax.optimization_barrier(jnp.swapaxes(r.astype(options.product_dtype), 1, 2))

    def body(after: SLSTMState, xs: tuple):
        """Cotangents of the state behind a token to those of the state before it, and of its pre-activations."""
        dy, k, reset, mask = xs
        dy, dm = after.y + dy, after.m
        dc, dn = after.c + dy * k.y_to_c, after.n + dy * k.y_to_n
        dwrite = k.write * (k.cell_input * dc + dn)  # of the exponents raw_i - m and log_f - m
        ddecay = k.decay * (k.c * dc + k.n * dn)
        m_to_f = 1 - k.m_to_i
        draw_i = m_to_f * dwrite + k.m_to_i * (dm - ddecay)
        dlog_f = k.m_to_i * ddecay + m_to_f * (dm - dwrite)
        draw = jnp.concatenate([draw_i, dlog_f * k.f, dc * k.c_to_z, dy * k.y_to_o], axis=-1)
        if mask is not None:
            draw = jnp.where(mask, draw, 0)
        if options.gradient_recurrent_cut:
            dy_before = jnp.zeros_like(dy)
        else:
            dy_before = _by_head("hbk,hkd->hbd", draw.astype(r_back.dtype), r_back, dy.dtype)
        if options.gradient_recurrent_clipval is not None:
            limit = options.gradient_recurrent_clipval
            dy_before = jnp.clip(dy_before, -limit, limit)
        before = SLSTMState(dy_before, k.decay * dc, k.decay * dn, dlog_f)
        if mask is not None:
            before = _where(mask, before, after._replace(y=dy))
        if reset is not None:
            before = _where(~reset, before)
        return before, draw

    dy, dfinal = cotangents
    dstate, draw = lax.scan(body, dfinal, (dy, _factors(kept, options), reset, mask), reverse=True, unroll=unroll)
    y_before = jnp.concatenate([y_start[None], y[:-1]])
    if reset is not None:
        y_before = jnp.where(reset, 0, y_before)
    dr = _by_head(
        "shbd,shbk->hdk", y_before.astype(options.product_dtype), draw.astype(options.product_dtype), draw.dtype
    )
    return draw, dr.astype(r.dtype), dstate, None, None


_run.defvjp(_run_fwd, _run_bwd)
