"""The sLSTM one token at a time: the oracle that the fast form is tested against, and the step for decoding.

Written to be read beside the xLSTM paper (arXiv 2405.04517, equations 8-18): nothing here is clever.
Shape suffixes: b batch, s seq, g gates (i, f, z, o), h heads, d dim, the same for inputs and outputs of a head.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.slstm.state import SLSTMState


class Options(NamedTuple):
    """What `slstm` takes beside arrays; see there."""

    product_dtype: DTypeLike
    gradient_recurrent_cut: bool
    gradient_recurrent_clipval: float | None
    forward_clipval: float | None


def recurrent(
    wx: Float[Array, "b s g h d"],
    r: Float[Array, "g h d d"],
    b: Float[Array, "g h d"],
    state: SLSTMState,
    *,
    reset: Bool[Array, "b s"] | None,
    mask: Bool[Array, "b s"] | None,
    options: Options,
) -> tuple[Float[Array, "b s h d"], SLSTMState]:
    """`step` scanned over time."""
    # Wide already here: the loop sums the gradient of r over the tokens in the dtype that r has outside of it.
    r, b = r.astype(state.c.dtype), b.astype(state.c.dtype)

    def body(state: SLSTMState, xs: tuple) -> tuple[SLSTMState, Array]:
        wx, reset, mask = xs
        y, state = step(state, wx, r, b, reset=reset, mask=mask, options=options)
        return state, y

    time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (wx, reset, mask))
    state, y = jax.lax.scan(body, state, time_first)
    return jnp.moveaxis(y, 0, 1), state


def step(
    state: SLSTMState,
    wx: Float[Array, "b g h d"],
    r: Float[Array, "g h d d"],
    b: Float[Array, "g h d"],
    *,
    reset: Bool[Array, " b"] | None,
    mask: Bool[Array, " b"] | None,
    options: Options,
) -> tuple[Float[Array, "b h d"], SLSTMState]:
    """One token. The arithmetic runs in the dtype of the state, R y in `product_dtype`; y comes in the dtype of wx."""
    old, dtype = state, state.c.dtype
    if mask is not None:
        # Whatever stands in padding, NaN included, reaches no gradient.
        wx = jnp.where(mask[:, None, None, None], wx, 0)
    if reset is not None:
        state = SLSTMState(*(jnp.where(reset[:, None, None], 0, x) for x in state))
    ry = jnp.einsum(
        "ghod,bhd->bgho",
        r.astype(options.product_dtype),
        _recurrent_input(state.y, options).astype(options.product_dtype),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )
    raw_i, raw_f, raw_z, raw_o = jnp.moveaxis(with_bias(wx, b, dtype) + ry, 1, 0)
    log_f = jax.nn.log_sigmoid(raw_f) + state.m
    # An element that has seen nothing takes its stabiliser from the first token: m of the empty state is no term of it.
    fresh = state.n == 0
    m = jnp.where(fresh, raw_i, jnp.maximum(raw_i, log_f))
    decay = jnp.where(fresh, 0, jnp.exp(jnp.where(fresh, 0, log_f - m)))
    write = jnp.exp(raw_i - m)
    c = decay * state.c + write * jnp.tanh(raw_z)
    n = decay * state.n + write
    y = clip_output(jax.nn.sigmoid(raw_o) * c / n, options)
    new = SLSTMState(y, c, n, m)
    if mask is not None:
        y = jnp.where(mask[:, None, None], y, 0)
        new = SLSTMState(*(jnp.where(mask[:, None, None], x, before) for x, before in zip(new, old, strict=True)))
    return y.astype(wx.dtype), new


_LEAST = (-(2.0**66), -(2.0**100), -math.inf, -math.inf)
"""No pre-activation of a gate is taken to be lower, in the order of the gates: both that of the input and that of the
forget gate outweigh every other number, and the latter outweighs the former. The stabiliser stays finite."""


def with_bias(
    wx: Float[Array, "*lead g h d"], b: Float[Array, "g h d"], dtype: DTypeLike
) -> Float[Array, "*lead g h d"]:
    """wx + b, the gates of it finite where they are minus infinity."""
    return jnp.maximum(wx.astype(dtype) + b.astype(dtype), jnp.asarray(_LEAST, dtype)[:, None, None])


def clip_output(y: Array, options: Options) -> Array:
    """y within ±forward_clipval; its gradient is 1 where it was not changed and 0 where it was."""
    limit = options.forward_clipval
    return y if limit is None else jnp.where(jnp.abs(y) > limit, jnp.sign(y) * limit, y)


def _recurrent_input(y: Array, options: Options) -> Array:
    """y, with the gradient that flows back through it cut or clipped."""
    if options.gradient_recurrent_cut:
        return jax.lax.stop_gradient(y)
    if options.gradient_recurrent_clipval is not None:
        return _clip_gradient(y, options.gradient_recurrent_clipval)
    return y


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _clip_gradient(x: Array, limit: float) -> Array:
    return x


def _clip_gradient_fwd(x: Array, limit: float) -> tuple[Array, None]:
    return x, None


def _clip_gradient_bwd(limit: float, _: None, dx: Array) -> tuple[Array]:
    return (jnp.clip(dx, -limit, limit),)


_clip_gradient.defvjp(_clip_gradient_fwd, _clip_gradient_bwd)
