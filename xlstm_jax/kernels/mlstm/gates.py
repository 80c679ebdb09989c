"""What the chunkwise form needs to know of the gates, before any query, key or value is touched.

The stabiliser of the mLSTM depends on the gates alone: m_t = max(log f_t + m_{t-1}, log i_t). It is computed here by a
max-plus prefix scan inside each chunk and one short scan over chunks, in a function that JAX can differentiate (its own
rule is the reverse linear recurrence, which also splits a tie the way `maximum` does in the oracle).

Shape suffixes: c chunks, b batch, h heads, l tokens of a chunk.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
