"""A sequence that lies in slices on several devices: what crosses between them. All of it runs in `jax.shard_map`.

The mLSTM is linear in its state: a slice maps the state before it to

    C' = exp(A + m - m') C + exp(W - m') C_s,   n' likewise,   m' = max(A + m, W),

with A the sum of its log forget gates and (C_s, n_s), in the frame W, what it would leave in an empty memory. So only
the slices' summaries (A, W, C_s, n_s) cross, whatever the length, and every device makes the state in front of its own
slice out of them (compare LASP-2, arXiv 2502.07563, for linear attention without gates).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.mlstm.gates import log_forget_gate
from xlstm_jax.kernels.mlstm.state import MLSTMState, clear_padding


class Summary(NamedTuple):
    """What a slice does to the memory in front of it."""

    decay: Float[Array, "batch heads"]
    """A."""
    frame: Float[Array, "batch heads"]
    """W; minus infinity if the slice writes nothing, 0 with the sigmoid gate, which needs no frame."""
    C: Float[Array, "batch heads dim_qk dim_v"]
    n: Float[Array, "batch heads dim_qk"]
    fresh: Bool[Array, "batch 1"] | None
    """Whether a sequence starts in the slice, so that nothing from before is left; None if none can."""


def summary(
    k: Float[Array, "batch seq heads dim_qk"],
    v: Float[Array, "batch seq heads dim_v"],
    i: Float[Array, "batch seq heads"],
    f: Float[Array, "batch seq heads"],
    reset: Bool[Array, "batch seq"] | None,
    mask: Bool[Array, "batch seq"] | None,
    gate: str,
    dtype: Any,
) -> Summary:
    """The summary of a slice, in `dtype`: one product over its tokens, no scan and no query."""
    k, v, i, f = (x.astype(dtype) for x in (k, v, i, f))
    if mask is not None:
        k, v, i, f = clear_padding(mask, k, v, i, f)
    log_f = log_forget_gate(f)
    log_i = i if gate == "exp" else jax.nn.log_sigmoid(i)
    if mask is not None:
        log_f, log_i = jnp.where(mask[..., None], log_f, 0), jnp.where(mask[..., None], log_i, -jnp.inf)
    write, alive, fresh = log_i, None, None
    if reset is not None:
        starts = (reset if mask is None else reset & mask)[..., None]
        # As in `gates.gate_terms`: a fresh sequence has m = 0 before its first token.
        write = jnp.where(starts, jnp.maximum(log_f, log_i), log_i)
        log_f = jnp.where(starts, 0, log_f)
        to_come = jax.lax.cumsum(starts.astype(jnp.int32), axis=1, reverse=True)
        alive, fresh = to_come == starts, to_come[:, 0] > 0
    from_here = jax.lax.cumsum(log_f, axis=1, reverse=True)
    after = jnp.concatenate([from_here[:, 1:], jnp.zeros_like(from_here[:, :1])], axis=1)
    log_w, frame = after + log_i, after + write
    if alive is not None:
        log_w, frame = jnp.where(alive, log_w, -jnp.inf), jnp.where(alive, frame, -jnp.inf)
    frame = jnp.max(frame, axis=1) if gate == "exp" else jnp.zeros_like(log_i[:, 0])
    weights = jnp.exp(log_w - jnp.where(frame == -jnp.inf, 0, frame)[:, None])
    if alive is not None:  # also what is not a number ends with its sequence
        k, v = clear_padding(alive[..., 0], k, v)
    weighted = k * weights[..., None]
    C = jnp.einsum("bshd,bshe->bhde", weighted, v, precision=jax.lax.Precision.HIGHEST)
    return Summary(from_here[:, 0], frame, C, jnp.sum(weighted, axis=1), fresh)


def entering(start: MLSTMState, mine: Summary, gate: str, axis: str) -> MLSTMState:
    """The state in front of this device's slice, from the one in front of the sequence and all devices' summaries."""
    number, place = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    slices: Summary = jax.lax.all_gather(mine, axis)
    # Entry 0 is the state in front of the sequence, entry r + 1 what slice r leaves. Every sum over the slices in
    # between is made by itself: a difference of two running sums would lose the small one.
    entry, between = jnp.arange(number + 1), jnp.arange(number)
    passes = (between >= entry[:, None]) & (between < place)
    alive = (entry <= place)[:, None, None]
    if slices.fresh is not None:
        alive = alive & ~jnp.any(passes[..., None, None] & slices.fresh, axis=1)
    decay = jnp.sum(jnp.where(passes[..., None, None], slices.decay, 0), axis=1)
    before = start.m if gate == "exp" else jnp.zeros_like(start.m)
    level = jnp.where(alive, decay + jnp.concatenate([before[None], slices.frame]), -jnp.inf)
    m = jnp.max(level, axis=0) if gate == "exp" else jnp.zeros_like(before)
    weights = jnp.exp(level - m)

    def fold(first: Array, rest: Array) -> Array:
        def weighted(weight: Array, alive: Array, x: Array) -> Array:
            shape = weight.shape + (1,) * (x.ndim - weight.ndim)
            # Selected: what is not a number must not outlive its sequence.
            return jnp.where(jnp.broadcast_to(alive, weight.shape).reshape(shape), weight.reshape(shape) * x, 0)

        return weighted(weights[0], alive[0], first) + jnp.sum(weighted(weights[1:], alive[1:], rest), axis=0)

    return MLSTMState(fold(start.C, slices.C), fold(start.n, slices.n), m if gate == "exp" else start.m)


def of_the_last(tree: Any, axis: str) -> Any:
    """What the device with the last slice has, on all of them."""
    last = jax.lax.axis_index(axis) == jax.lax.axis_size(axis) - 1
    return jax.tree.map(lambda x: jax.lax.psum(jnp.where(last, x, jnp.zeros_like(x)), axis), tree)


def of_the_slice_before(x: Array, first: Array, axis: str) -> Array:
    """What the device with the slice before has; `first` on the one with the first slice."""
    number = jax.lax.axis_size(axis)
    passed = jax.lax.ppermute(x, axis, [(r, r + 1) for r in range(number - 1)])
    return jnp.where(jax.lax.axis_index(axis) == 0, first, passed)


def heads_for_sequence(x: Array, axis: str, *, heads: int, sequence: int = 1) -> Array:
    """From a slice of the sequence of all heads to the whole sequence of some heads; the axes' places are given."""
    return jax.lax.all_to_all(x, axis, heads, sequence, tiled=True)


def sequence_for_heads(x: Array, axis: str, *, heads: int, sequence: int = 1) -> Array:
    """The way back of `heads_for_sequence`."""
    return jax.lax.all_to_all(x, axis, sequence, heads, tiled=True)
