"""Next-token cross-entropy that never holds the logits of a whole batch.

Logits are the largest tensor of a language model's step (batch x seq x vocabulary, float32). Here the head runs on a
few hundred tokens at a time, and while a chunk's logits are at hand their gradient is taken at once: three matrix
products per chunk, as many as without chunks, and none of the logits survives its chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xlstm_jax.kernels.registry import wide

CHUNK_TOKENS = 512
"""Tokens whose logits are held at once. 512 was the fastest of 128...4096 on CPUs; any value is right."""

Head = Callable[[Float[Array, "tokens dim"]], Float[Array, "tokens vocab"]]


class LossSum(NamedTuple):
    """A sum of nats and the number of targets that it is over."""

    nats: Float[Array, ""]
    tokens: Int[Array, ""]


class TargetScores(NamedTuple):
    """What the targets cost, each by itself, and whether they were the first choice."""

    nats: Float[Array, "batch seq"]
    likeliest: Bool[Array, "batch seq"]
    """Whether a greedy choice, which of equal tokens takes that with the lowest id, is the target."""


def token_nats(logits: Float[Array, "*n vocab"], targets: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """-ln p(target) in at least float32."""
    logits = logits.astype(wide(logits.dtype))
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def _masked_sum(nats: Float[Array, "*n"], mask: Bool[Array, "*n"]) -> Float[Array, ""]:
    # Selected, not multiplied: a masked target's loss may be infinite, and 0 * inf is NaN.
    return jnp.sum(jnp.where(mask, nats, 0.0))


def plain_cross_entropy(
    logits: Float[Array, "batch seq vocab"], targets: Int[Array, "batch seq"], mask: Bool[Array, "batch seq"]
) -> LossSum:
    """Cross-entropy summed over the targets whose mask is true; the readable form that `cross_entropy` must equal."""
    return LossSum(_masked_sum(token_nats(logits, targets), mask), jnp.sum(mask, dtype=jnp.int32))


def cross_entropy(
    head: Head,
    features: Float[Array, "batch seq dim"],
    targets: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> LossSum:
    """Cross-entropy summed over the targets whose mask is true, differentiable in `features` and in what `head` uses.

    Args:
        head: features to logits, token by token; its parameters are those that it closes over.
        features: what the head reads.
        targets: token ids; anything in range where the mask is false.
        mask: which targets count. None at all gives a loss of zero and a gradient of zero.
        chunk_tokens: tokens whose logits are held at once.
    """
    pieces = _chunks(chunk_tokens, features, targets, mask)
    # The head's parameters become explicit, so that the custom gradient below can return theirs.
    pure_head, params = jax.closure_convert(head, pieces[0][0])
    nats = _summed_nats(pure_head, pieces[0], pieces[1], pieces[2], tuple(params))
    return LossSum(nats, jnp.sum(mask, dtype=jnp.int32))


def target_nats(
    head: Head,
    features: Float[Array, "batch seq dim"],
    targets: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Float[Array, "batch seq"]:
    """What `cross_entropy` sums, target by target, zero where the mask is false; the arguments are the same."""
    nats = _by_target(token_nats, head, features, targets, chunk_tokens)
    return jnp.where(mask, nats, 0.0)


def target_scores(
    head: Head,
    features: Float[Array, "batch seq dim"],
    targets: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> TargetScores:
    """As `target_nats`, with whether each target is the likeliest token; true where the mask is false."""

    def scored(logits: Array, targets: Array) -> tuple[Array, Array]:
        return token_nats(logits, targets), jnp.argmax(logits, axis=-1) == targets

    nats, likeliest = _by_target(scored, head, features, targets, chunk_tokens)
    return TargetScores(jnp.where(mask, nats, 0.0), likeliest | ~mask)


def _by_target(of_logits: Callable, head: Head, features: Array, targets: Array, chunk_tokens: int) -> Any:
    """`of_logits(logits, targets)`, arrays (tokens,), for all targets (batch, seq), a chunk at a time."""
    pieces = _chunks(chunk_tokens, features, targets)
    found = jax.lax.map(lambda piece: of_logits(head(piece[0]), piece[1]), pieces)
    return jax.tree.map(lambda x: x.reshape(-1)[: targets.size].reshape(targets.shape), found)


def _chunks(chunk_tokens: int, *arrays: Array) -> tuple[Array, ...]:
    """Arrays (batch, seq, ...) as (chunks, tokens, ...), filled up with zeros."""
    tokens = arrays[0].shape[0] * arrays[0].shape[1]
    chunk = max(1, min(chunk_tokens, tokens))
    num_chunks = max(1, -(-tokens // chunk))
    padding = num_chunks * chunk - tokens

    def chunked(x: Array) -> Array:
        flat, shape = x.reshape(tokens, *x.shape[2:]), x.shape[2:]
        return jnp.pad(flat, ((0, padding),) + ((0, 0),) * len(shape)).reshape(num_chunks, chunk, *shape)

    return tuple(map(chunked, arrays))


def _chunk_nats(head: Callable, targets: Array, mask: Array, features: Array, params: tuple) -> Array:
    return _masked_sum(token_nats(head(features, *params), targets), mask)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed_nats(head: Callable, features: Array, targets: Array, mask: Array, params: tuple) -> Array:
    nats = jax.lax.map(lambda piece: _chunk_nats(head, piece[1], piece[2], piece[0], params), (features, targets, mask))
    return jnp.sum(nats)


def _summed_nats_fwd(
    head: Callable, features: Array, targets: Array, mask: Array, params: tuple
) -> tuple[Array, tuple[Any, Array]]:
    def one(grad_params: tuple, piece: tuple[Array, Array, Array]) -> tuple[tuple, tuple[Array, Array]]:
        x, target, keep = piece
        nats, pullback = jax.vjp(partial(_chunk_nats, head, target, keep), x, params)
        grad_x, grad_piece = pullback(jnp.ones_like(nats))
        return jax.tree.map(jnp.add, grad_params, grad_piece), (nats, grad_x)

    zeros = jax.tree.map(jnp.zeros_like, params)
    grad_params, (nats, grad_features) = jax.lax.scan(one, zeros, (features, targets, mask))
    return jnp.sum(nats), (grad_params, grad_features)


def _summed_nats_bwd(head: Callable, gradients: tuple, cotangent: Array) -> tuple:
    grad_params, grad_features = jax.tree.map(lambda g: g * cotangent.astype(g.dtype), gradients)
    return grad_features, None, None, grad_params


_summed_nats.defvjp(_summed_nats_fwd, _summed_nats_bwd)
