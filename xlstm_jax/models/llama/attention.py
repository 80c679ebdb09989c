"""Causal attention with rotary positions, documents kept apart, padding anywhere and a cache of keys and values."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from xlstm_jax.distributed.constrain import on_mesh
from xlstm_jax.distributed.kernels import attention
from xlstm_jax.kernels.registry import wide
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.init import small_init, wang_init
from xlstm_jax.models.shared.layers import Linear, RMSNorm
from xlstm_jax.models.shared.tracing import DIAGNOSTICS, keep_trace

MIN_BLOCK = 128
"""Queries of a block of attention: 128 was the fastest of 64, 128 and 256 on a CPU, at 512 tokens."""
MAX_BLOCKS = 8
"""Each is compiled by itself, so a long sequence gets longer ones; with 8 they make 9/16 of all products."""


class KVCache(NamedTuple):
    """What a block remembers of the text so far: the rotated keys and the values of the document that is being read.

    The token at position p of its document lies in slot p, so a new document begins to overwrite the one before. What
    lies from slot `length` on means nothing.
    """

    key: Float[Array, "batch kv_heads slots head_dim"]
    value: Float[Array, "batch kv_heads slots head_dim"]
    length: Int[Array, " batch"]
    """Tokens of the document so far; beyond the number of slots if some found no room."""

    @property
    def capacity(self) -> int:
        """Tokens of a document that the cache has room for."""
        return self.key.shape[-2]


class AttentionTrace(NamedTuple):
    """What a block's attention compares, for people to look at; see `models.diagnostics`."""

    query: Float[Array, "batch seq heads head_dim"]
    """Rotated."""
    key: Float[Array, "batch seq kv_heads head_dim"]
    """Rotated; those of the call alone."""
    scale: Float[Array, ""]
    """What their products are multiplied by before the softmax."""


class Layout(NamedTuple):
    """Where the tokens of a call stand and what each of them may see; the same for all blocks."""

    sin: Float[Array, "rows seq half"]
    cos: Float[Array, "rows seq half"]
    mask: Bool[Array, "rows one seq keys"] | None
    """Which keys a query sees, the cache's before those of the call; None for all of the call's up to itself."""
    slot: Int[Array, "batch seq"] | None
    """Where the cache keeps a token; an index beyond its slots for those that it does not keep."""
    length: Int[Array, " batch"] | None
    """Tokens of each row's last document, after the call."""
    lost: Bool[Array, "batch seq"] | None
    """Tokens that a cache of this size cannot be right for."""
    documents: Int[Array, "rows seq"] | None = None
    """On a mesh that may part the sequence, in place of a mask: the document of each token, -1 for padding."""


def lay_out(
    config: LlamaConfig,
    shape: tuple[int, int],
    *,
    document_borders: Bool[Array, "batch seq"] | None,
    mask: Bool[Array, "batch seq"] | None,
    before: Int[Array, " batch"] | None,
    capacity: int | None,
) -> Layout:
    """The layout of a call.

    Positions count the real tokens of a document, so that padding changes none of them.

    Args:
        shape: (batch, seq) of the tokens.
        document_borders: true at the first token of a document; None if documents may see each other.
        mask: false at padding.
        before: tokens of each row's document that the cache holds; None without a cache to read.
        capacity: slots of the cache; None without one.
    """
    seq = shape[1]
    steps = jnp.arange(seq, dtype=jnp.int32)
    if document_borders is None and mask is None and before is None:
        sin, cos = rotary_angles(config, steps[None])
        slot = count = None
        if capacity is not None:
            slot, count = jnp.broadcast_to(steps, shape), jnp.full(shape[0], seq, jnp.int32)
        return Layout(sin, cos, None, slot, count, None)

    real = jnp.ones(shape, bool) if mask is None else mask
    starts = jnp.zeros(shape, bool) if document_borders is None else document_borders & real
    old = jnp.zeros(shape[0], jnp.int32) if before is None else before
    number = jnp.cumsum(real, axis=1, dtype=jnp.int32)
    document = jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    # Real tokens of the call before the current document; those in the cache count as negative ones.
    ahead = jax.lax.cummax(jnp.where(starts, number - 1, -old[:, None]), axis=1)
    position = jnp.maximum(number - 1 - ahead, 0)
    sin, cos = rotary_angles(config, position)
    count = number[:, -1] - ahead[:, -1] if seq else old
    lost = None if before is None or capacity is None else real & (position >= capacity)
    slot = None
    if capacity is not None:
        kept = real & (document == document[:, -1:])
        slot = jnp.where(kept, jnp.minimum(position, capacity), capacity)
    documents = None
    if before is None and on_mesh():
        visible, documents = None, jnp.where(real, document, -1)
    elif before is not None and seq == 1:
        visible = jnp.arange(capacity)[None, None, :] < count[:, None, None]
    else:
        visible = (steps[:, None] >= steps[None, :]) & real[:, None, :] & (document[:, :, None] == document[:, None, :])
        if before is not None:
            held = (jnp.arange(capacity)[None, None, :] < old[:, None, None]) & (document == 0)[:, :, None]
            visible = jnp.concatenate([held, visible], axis=2)
    return Layout(sin, cos, None if visible is None else visible[:, None], slot, count, lost, documents)


def rotary_angles(
    config: LlamaConfig, position: Int[Array, "rows seq"]
) -> tuple[Float[Array, "rows seq half"], Float[Array, "rows seq half"]]:
    """Sine and cosine of position times theta^(-2i / head_dim), for i below half of head_dim (arXiv 2104.09864)."""
    dtype = wide(config._dtype)
    exponents = jnp.arange(0, config.head_dim, 2, dtype=dtype) / config.head_dim
    angles = position[..., None].astype(dtype) * jnp.asarray(config.theta, dtype) ** -exponents
    return jnp.sin(angles), jnp.cos(angles)


def rotate(
    x: Float[Array, "batch seq heads head_dim"], sin: Float[Array, "rows seq half"], cos: Float[Array, "rows seq half"]
) -> Float[Array, "batch seq heads head_dim"]:
    """Turn each pair (feature i, feature i + head_dim / 2) by its angle, in at least float32."""
    sin, cos = sin[:, :, None], cos[:, :, None]
    first, second = jnp.split(x.astype(sin.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    value: Float[Array, "batch keys kv_heads head_dim"],
    mask: Bool[Array, "rows one seq keys"] | None,
    scale: float,
    documents: Int[Array, "rows seq"] | None = None,
) -> Float[Array, "batch seq heads head_dim"]:
    """softmax(scale query key^T) value; causal without a mask. A query that sees no key gets some finite value.

    `documents` stands for the mask of a call without a cache: a query sees the keys of its own document.

    No query sees a key that stands behind it, whatever the mask. Queries go in a few blocks, each with the keys up to
    its end: nearly half of the products are never made, and on a CPU a block's weights stay in the cache.
    """
    seq, held = query.shape[1], key.shape[1] - query.shape[1]
    size = max(MIN_BLOCK, -(-seq // MAX_BLOCKS))
    out = []
    for start in range(0, seq, size):
        end = min(start + size, seq)
        seen = held + end
        if mask is not None:
            visible = mask[:, :, start:end, :seen]
        else:
            visible = jnp.arange(held + start, seen)[:, None] >= jnp.arange(seen)
        if documents is not None:
            visible = visible & (documents[:, start:end, None] == documents[:, None, :seen])[:, None]
        out.append(_attend_block(query[:, start:end], key[:, :seen], value[:, :seen], visible, scale))
    if not out:  # no query at all
        return jnp.zeros_like(query)
    return jnp.concatenate(out, axis=1) if len(out) > 1 else out[0]


def _attend_block(query: Array, key: Array, value: Array, mask: Array, scale: float) -> Array:
    mask = jnp.broadcast_to(mask, (*(1,) * (4 - mask.ndim), *mask.shape))
    if query.dtype == jnp.float64:
        return _attend_float64(query, key, value, mask, scale)
    # JAX's own function leaves casts to promotion.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale)


def _attend_float64(query: Array, key: Array, value: Array, mask: Array, scale: float) -> Array:
    """JAX's function rounds its softmax to float32 whatever it is given."""
    batch, seq, heads, dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, seq, kv_heads, heads // kv_heads, dim)
    logits = scale * jnp.einsum("btkgd,bskd->bkgts", grouped, key)
    weights = jax.nn.softmax(jnp.where(mask[:, :, None], logits, -1e300), axis=-1)
    return jnp.einsum("bkgts,bskd->btkgd", weights, value).reshape(query.shape)


class SelfAttention(nn.Module):
    """Attention of one block.

    Parameters: dense_q, dense_k, dense_v (dim, heads * head_dim), dense_out (heads * head_dim, dim) and, with
    `config.qk_norm`, q_norm and k_norm with a scale (head_dim,) that all heads share.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        cache: KVCache | None = None,
        context: Context = PLAIN,
    ) -> tuple[Float[Array, "batch seq dim"], KVCache | None]:
        """(y, cache); the context's layout is that of the call."""
        cfg, layout = self.config, context.layout
        batch, seq, dim = x.shape

        def heads_of(name: str, heads: int) -> Array:
            init = small_init(dim)
            y = Linear(heads * cfg.head_dim, init, cfg.use_bias, cfg.dtype, name=f"dense_{name}")(x)
            return y.reshape(batch, seq, heads, cfg.head_dim)

        query, key, value = heads_of("q", cfg.num_heads), heads_of("k", cfg.kv_heads), heads_of("v", cfg.kv_heads)
        if cfg.qk_norm:
            query = RMSNorm(eps=cfg.norm_eps, dtype=cfg.dtype, name="q_norm")(query)
            key = RMSNorm(eps=cfg.norm_eps, dtype=cfg.dtype, name="k_norm")(key)
        query, key = rotate(query, layout.sin, layout.cos), rotate(key, layout.sin, layout.cos)

        if self.is_mutable_collection(DIAGNOSTICS):
            keep_trace(self, lambda: AttentionTrace(query, key, jnp.asarray(cfg.qk_scale, query.dtype)))
        keeps = context.keep_state or (cache is not None and seq == 1)
        after = self._write(cache, key, value, layout) if keeps else None
        if cache is None:
            keys, values = key, value
        elif seq == 1 and after is not None:
            # One token overwrites nothing that it may see: the cache is read in place, without a copy.
            keys, values = _heads_last(after.key), _heads_last(after.value)
        else:
            keys = jnp.concatenate([_heads_last(cache.key), key], axis=1)
            values = jnp.concatenate([_heads_last(cache.value), value], axis=1)

        def attended(query: Array, keys: Array, values: Array, seen: tuple[Array | None, Array | None]) -> Array:
            mask, documents = seen
            return attend(query, keys, values, mask, cfg.qk_scale, documents)

        y = attention(attended, query, keys, values, (layout.mask, layout.documents))
        y = y.reshape(batch, seq, cfg.num_heads * cfg.head_dim)
        out_init = wang_init(dim, 2 * cfg.num_blocks)
        y = Linear(dim, out_init, cfg.use_bias, cfg.dtype, name="dense_out")(y)
        y = nn.Dropout(cfg.dropout, deterministic=not context.train)(y)
        return y, after if context.keep_state else None

    def _write(self, cache: KVCache | None, key: Array, value: Array, layout: Layout) -> KVCache:
        assert layout.slot is not None
        assert layout.length is not None
        if cache is None:
            cache = init_cache(self.config, key.shape[0], max(self.config.context_length, key.shape[1]))
        rows = jnp.arange(key.shape[0])[:, None]
        return KVCache(
            cache.key.at[rows, :, layout.slot].set(key.astype(cache.key.dtype), mode="drop"),
            cache.value.at[rows, :, layout.slot].set(value.astype(cache.value.dtype), mode="drop"),
            layout.length,
        )


def _heads_last(cached: Float[Array, "batch kv_heads slots head_dim"]) -> Float[Array, "batch slots kv_heads head_dim"]:
    """The cache in the order of axes that attention takes. It lies in memory as the products of a step of decoding read
    it; in this order they would first transpose it as a whole."""
    return jnp.swapaxes(cached, 1, 2)


def init_cache(config: LlamaConfig, batch_size: int, capacity: int) -> KVCache:
    """An empty cache with room for `capacity` tokens a row."""
    shape = (batch_size, config.kv_heads, capacity, config.head_dim)
    return KVCache(jnp.zeros(shape, config._dtype), jnp.zeros(shape, config._dtype), jnp.zeros(batch_size, jnp.int32))
