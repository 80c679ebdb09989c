"""The Llama language model: tokens in, logits out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from xlstm_jax.config import ConfigError
from xlstm_jax.models.llama.attention import KVCache, lay_out
from xlstm_jax.models.llama.block import TransformerBlockStack, init_state
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.shared.embedding import Embedding, check_inputs
from xlstm_jax.models.shared.init import small_init
from xlstm_jax.models.shared.lm_head import LMHead
from xlstm_jax.models.shared.remat import call_part


class LlamaLMModel(nn.Module):
    """Embedding, stack of blocks, final norm, head; the interface is that of `xLSTMLMModel`.

    Parameters: token_embedding/embedding (vocab, dim), block_stack (see `TransformerBlockStack`) and, unless weights
    are tied, lm_head/kernel (dim, vocab).

    The state is a cache of keys and values with room for so many tokens of a document (`init_state`); features and
    logits of tokens that it has no room for are NaN.
    """

    config: LlamaConfig

    fixed_state: ClassVar[bool] = False
    """The state must be made as large as the text will be."""

    def setup(self) -> None:
        cfg = self.config
        if cfg.vocab_size < 1:
            raise ConfigError(f"LlamaConfig.vocab_size is {cfg.vocab_size}, but must be set to build the model")
        self.token_embedding = Embedding(cfg.vocab_size, cfg.embedding_dim, cfg._dtype, small_init(cfg.embedding_dim))
        self.embedding_dropout = nn.Dropout(cfg.dropout if cfg.add_embedding_dropout else 0.0)
        self.block_stack = TransformerBlockStack(cfg)
        self.lm_head = LMHead(cfg.vocab_size, small_init(cfg.embedding_dim), cfg._lm_head_dtype, cfg.logits_soft_cap)

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        *,
        document_borders: Bool[Array, "batch seq"] | None = None,
        mask: Bool[Array, "batch seq"] | None = None,
        state: Any = None,
        return_state: bool = False,
        train: bool = False,
    ) -> Any:
        """Logits of the next token at every position.

        Args:
            tokens: the tokens, whole numbers below `config.vocab_size`.
            document_borders: true at the first token of a document; acts if `config.mask_across_document_boundaries`.
            mask: false at padding, anywhere in a row: the other positions' results are as if it were not there. Its own
                are arbitrary, but finite.
            state: what an earlier call returned, or `init_state`; None for an empty one.
            return_state: also return the state after the last token. Without `state` it has room for
                `config.context_length` tokens a document, or for those of this call if they are more.
            train: switches dropout on, which then needs `rngs={"dropout": key}`.

        Returns:
            float32 logits (batch, seq, vocab), or (logits, state). Tokens at positions of their document for which the
            given state has no room get NaN, in this call and in those that go on from it.

        Raises:
            ValueError: for arguments whose shapes or dtypes do not fit, and for more tokens than the state has room
                for where the shapes alone tell.
        """
        features = self.features(
            tokens,
            document_borders=document_borders,
            mask=mask,
            state=state,
            return_state=return_state,
            train=train,
        )
        features, state = features if return_state else (features, None)
        logits = self.head(features)
        return (logits, state) if return_state else logits

    def features(
        self,
        tokens: Int[Array, "batch seq"],
        *,
        document_borders: Bool[Array, "batch seq"] | None = None,
        mask: Bool[Array, "batch seq"] | None = None,
        state: Any = None,
        return_state: bool = False,
        train: bool = False,
    ) -> Any:
        """The hidden states after the final norm, (batch, seq, dim), or (hidden states, state)."""
        cfg = self.config
        check_inputs(tokens, document_borders=document_borders, mask=mask)
        borders = document_borders if cfg.mask_across_document_boundaries else None
        before, capacity = None, None
        if state is not None:
            before, capacity = self._room(state, tokens.shape[0])
            if borders is None and mask is None and tokens.shape[1] > capacity:
                raise ValueError(
                    f"tokens has {tokens.shape[1]} positions, but the state has room for {capacity}: make it with "
                    f"init_state(batch_size, max_length) and a larger max_length"
                )
        elif return_state:
            capacity = max(cfg.context_length, tokens.shape[1])
        batch, seq = tokens.shape
        layout = lay_out(cfg, (batch, seq), document_borders=borders, mask=mask, before=before, capacity=capacity)

        if mask is not None:
            tokens = jnp.where(mask, tokens, 0)
        x = call_part("Embed", cfg.parallel, lambda embed, tokens: embed(tokens), self.token_embedding, tokens)
        x = self.embedding_dropout(x, deterministic=not train)
        x, after = self.block_stack(x, layout, state, return_state=return_state, train=train)
        if layout.lost is not None:
            x = jnp.where(layout.lost[..., None], jnp.asarray(jnp.nan, x.dtype), x)
        return (x, after) if return_state else x

    def head(self, features: Float[Array, "*shape dim"]) -> Float[Array, "*shape vocab"]:
        """The float32 logits of hidden states that `features` returned, soft-capped."""
        kernel = self.token_embedding.embedding if self.config.tie_weights else None
        return call_part(
            "LMHead", self.config.parallel, lambda head, x, kernel: head(x, kernel), self.lm_head, features, kernel
        )

    @nn.nowrap
    def _room(self, state: Any, batch: int) -> tuple[Int[Array, " batch"], int]:
        """Tokens of each row's document so far, and how many there can be.

        Raises:
            ValueError: for a state of another model or batch.
        """
        cfg = self.config
        scanned = isinstance(state, KVCache)
        if scanned != cfg.scan_blocks or (not scanned and len(state) != cfg.num_blocks):
            raise ValueError(
                f"state is {'one scanned cache' if scanned else f'{len(state)} caches'}, but the model has "
                f"{cfg.num_blocks} blocks and scan_blocks is {cfg.scan_blocks}"
            )
        found = (state if scanned else state[0]).key.shape[-4:]
        count, capacity = self.tokens_held(state)
        wanted = (batch, cfg.kv_heads, capacity, cfg.head_dim)
        if found != wanted:
            raise ValueError(f"state has keys of shape {found}, but this call needs {wanted}")
        return count, capacity

    @nn.nowrap
    def init_state(self, batch_size: int, max_length: int | None = None) -> Any:
        """The state before the first token: a `KVCache` a block.

        Args:
            batch_size: rows.
            max_length: tokens of a document that there is to be room for; `config.context_length` if None.

        Returns:
            a tuple with one cache a block, whose arrays have the batch as axis 0; with `scan_blocks` one cache, whose
            arrays have the block as axis 0 and the batch as axis 1.

        Raises:
            ValueError: without a length.
        """
        capacity = self.config.context_length if max_length is None else max_length
        if capacity < 1:
            given = f"max_length is {max_length}" if max_length is not None else f"context_length is {capacity}"
            raise ValueError(f"{given}, but a cache of keys and values needs room for at least 1 token")
        return init_state(self.config, batch_size, capacity)

    @nn.nowrap
    def tokens_held(self, state: Any) -> tuple[Int[Array, " batch"], int]:
        """Tokens of its document that each row of a state has read, and how many there is room for."""
        cache = jax.tree.map(lambda leaf: leaf[0], state) if isinstance(state, KVCache) else state[0]
        return cache.length, cache.capacity

    @property
    def param_count(self) -> int:
        """Number of parameters; no array is made."""
        model = LlamaLMModel(replace(self.config, scan_blocks=True), parent=None)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    @property
    def state_bytes(self) -> int:
        """Size of the state of one sequence of `config.context_length` tokens, in bytes."""
        shapes = jax.eval_shape(lambda: self.init_state(1))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    @nn.nowrap
    def flops_per_token(self, seq: int, train: bool = False) -> float:
        """Floating-point operations per token in matrix products at sequence length `seq`.

        Of queries times keys and weights times values only the causal half counts; no recomputation, no elementwise
        work and no look-up of embeddings. `train=True` counts forward and backward: three times as much.
        """
        cfg = self.config
        dim, width = cfg.embedding_dim, cfg.num_heads * cfg.head_dim
        maps = 2 * dim * (2 * width + 2 * cfg.kv_heads * cfg.head_dim) + 6 * dim * cfg.ffn_width
        forward = cfg.num_blocks * (maps + 2 * width * (seq + 1)) + 2 * dim * cfg.vocab_size
        return float(3 * forward if train else forward)
