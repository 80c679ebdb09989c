"""What the chunkwise form needs to know of the gates, before any query, key or value is touched.

The stabiliser of the mLSTM depends on the gates alone: m_t = max(log f_t + m_{t-1}, log i_t). It is computed here by a
max-plus prefix scan inside each chunk and one short scan over chunks, in a function that JAX can differentiate (its own
rule is the reverse linear recurrence, which also splits a tie the way `maximum` does in the oracle).

Shape suffixes: c chunks, b batch, h heads, l tokens of a chunk.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SHUT = -(2.0**100)
"""No forget gate is taken to be lower: beside it every other gate is lost, and its sums over a sequence are finite and,
for a power of two, exact. Those of minus infinity, or of the least float32, have no differences."""


def log_forget_gate(f: Float[Array, "*lead"]) -> Float[Array, "*lead"]:
    """log sigmoid(f), finite for every f but NaN."""
    return jax.nn.log_sigmoid(jnp.maximum(f, SHUT))


class GateTerms(NamedTuple):
    """What the weights of all chunks follow from: log gates, 0 and -inf at masked tokens, and the stabilisers."""

    log_i: Array  # c b h l
    log_f: Array  # c b h l, 0 where a sequence starts
    starts: Array | None  # c b 1 l, true where a sequence starts
    valid: Array | None  # c b 1 l, false at masked tokens; None if there are none
    m: Array  # c b h l
    m0: Array  # b h, before the first token


def gate_terms(
    i: Float[Array, "b s h"],
    f: Float[Array, "b s h"],
    m0: Float[Array, "b h"],
    *,
    reset: Bool[Array, "b s"] | None,
    mask: Bool[Array, "b s"] | None,
    gate: str,
    size: int,
) -> GateTerms:
    """The differentiable pre-pass, in chunks of `size` tokens and in the dtype of m0.

    Where the last chunk is not full it begins earlier, so that it is, and what it has in common with the chunk before
    is masked in it: nothing as large as the inputs has to be padded.
    """
    batch, seq = i.shape[:2]
    shared = -seq % size
    if shared and mask is None:
        mask = jnp.ones((batch, seq), bool)

    def by_chunk(x: Array) -> Array:  # (b, s, h) -> (c, b, h, l)
        if shared:
            x = jnp.concatenate([x[:, : seq // size * size], x[:, seq - size :]], axis=1)
        return jnp.moveaxis(x.reshape(batch, -(-seq // size), size, x.shape[-1]), (1, 3), (0, 2))

    i, f = by_chunk(i.astype(m0.dtype)), by_chunk(f.astype(m0.dtype))
    valid = starts = None
    if mask is not None:
        valid = by_chunk(mask[..., None])
        valid = valid.at[-1, ..., :shared].set(False)
        i, f = jnp.where(valid, i, 0), jnp.where(valid, f, 0)
    log_f = log_forget_gate(f)
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
        return GateTerms(log_i, log_f, starts, valid, stabilisers(decay, write, m0), m0)
    return GateTerms(log_i, log_f, starts, valid, jnp.zeros_like(log_i), jnp.zeros_like(m0))


@jax.custom_vjp
def stabilisers(
    decay: Float[Array, "c b h l"], write: Float[Array, "c b h l"], start: Float[Array, "b h"]
) -> Float[Array, "c b h l"]:
    """m_t = max(decay_t + m_{t-1}, write_t) from m = `start`; either term may be -inf, not both."""

    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] + right[0], jnp.maximum(left[1] + right[0], right[1])

    decays, writes = jax.lax.associative_scan(combine, (decay, write), axis=-1)
    entering = _entering_chunks(decays[..., -1], writes[..., -1], start)
    return jnp.maximum(decays + entering[..., None], writes)


def _entering_chunks(decay: Array, write: Array, start: Array) -> Array:
    """The stabiliser before each chunk, from the chunks' totals."""

    def body(m: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.maximum(totals[0] + m, totals[1]), m

    return jax.lax.scan(body, start, (decay, write))[1]


def _stabilisers_fwd(decay: Array, write: Array, start: Array) -> tuple[Array, tuple]:
    m = stabilisers(decay, write, start)
    return m, (decay, write, start, m)


def _stabilisers_bwd(saved: tuple, dm: Array) -> tuple[Array, Array, Array]:
    decay, write, start, m = saved
    before_chunk = jnp.concatenate([start[None], m[:-1, ..., -1]])
    before = jnp.concatenate([before_chunk[..., None], m[..., :-1]], axis=-1)
    kept = decay + before
    # The share of the cotangent that passes on to m_{t-1}: one, or a half where both terms are equal.
    share = jnp.where(kept > write, 1.0, jnp.where(kept == write, 0.5, 0.0)).astype(m.dtype)

    # total_t = dm_t + share_{t+1} total_{t+1}, over the whole sequence from its end.
    def combine(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return later[0] * earlier[0], earlier[1] + earlier[0] * later[1]

    shifted = jnp.concatenate([share[..., 1:], jnp.ones_like(share[..., :1])], axis=-1)
    weights, sums = jax.lax.associative_scan(combine, (shifted, dm), axis=3, reverse=True)

    def body(after: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        weight, total, first_share = xs
        return first_share * (total + weight * after), after

    # `after` is what reaches the last token of a chunk from the chunk behind it.
    dstart, after = jax.lax.scan(
        body, jnp.zeros_like(start), (weights[..., 0], sums[..., 0], share[..., 0]), reverse=True
    )
    total = sums + weights * after[..., None]
    return share * total, (1 - share) * total, dstart


stabilisers.defvjp(_stabilisers_fwd, _stabilisers_bwd)


def exact_cumsum(x: Float[Array, "*lead l"]) -> tuple[Float[Array, "*lead l"], Float[Array, "*lead l"]]:
    """The running sum along the last axis as an unevaluated pair (high, low).

    Differences of a plain float32 running sum lose what one strongly negative log forget gate (say -100) left behind:
    later, small terms are rounded at the size of the sum. The pair carries the rounding error along (Knuth's two-sum),
    so `(high_t - high_j) + (low_t - low_j)` is exact to the dtype.
    """

    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        high = left[0] + right[0]
        part = high - left[0]
        lost = (left[0] - (high - part)) + (right[0] - part)
        return high, left[1] + right[1] + lost

    return jax.lax.associative_scan(combine, (x, jnp.zeros_like(x)), axis=-1)


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


def gates_of(terms: GateTerms) -> Gates:
    """The weights that follow from the terms."""
    log_i, log_f, starts, valid, m, m0 = terms
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


def normaliser_floor(m: Float[Array, "*lead"]) -> Float[Array, "*lead"]:
    """exp(-m), the least absolute value of the normaliser; infinite where the dtype ends.

    With input gates at -100 it exceeds float32: what is divided by it is then zero to the dtype, and so is its
    gradient. The exponential itself stays finite, since its derivative would turn an infinity into NaN.
    """
    largest = 0.999 * math.log(float(jnp.finfo(m.dtype).max))
    return jnp.where(-m < largest, jnp.exp(jnp.minimum(-m, largest)), jnp.inf)
