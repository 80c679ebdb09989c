"""The xLSTM language model: tokens in, logits out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from xlstm_jax.config import ConfigError, PositiveFloat, PositiveInt
from xlstm_jax.models.configs import FloatName
from xlstm_jax.models.shared.embedding import Embedding, check_inputs
from xlstm_jax.models.shared.init import small_init
from xlstm_jax.models.shared.lm_head import LMHead
from xlstm_jax.models.shared.remat import call_part
from xlstm_jax.models.xlstm_parallel.xlstm_block_stack import SLSTM, xLSTMBlockStack, xLSTMBlockStackConfig


@dataclass
class xLSTMLMModelConfig(xLSTMBlockStackConfig):
    vocab_size: PositiveInt | Literal[-1] = -1
    """Number of tokens; must be set to build the model."""
    tie_weights: bool = False
    """Use the embedding as the head's kernel."""
    weight_decay_on_embedding: bool = False
    """Whether the optimizer decays the embedding."""
    add_embedding_dropout: bool = False
    """Dropout, at the rate `dropout`, on the embedded tokens too."""
    logits_soft_cap: PositiveFloat | None = None
    """Soft cap for the logits; None for no cap."""
    lm_head_dtype: FloatName = "float32"
    """Dtype of the product with the head; logits are float32."""

    @property
    def _lm_head_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.lm_head_dtype)


class xLSTMLMModel(nn.Module):
    """Embedding, stack of blocks, final norm, head.

    Parameters: token_embedding/embedding (vocab, dim), xlstm_block_stack (see `xLSTMBlockStack`) and, unless weights
    are tied, lm_head/kernel (dim, vocab).

    Example:
        >>> model = xLSTMLMModel(config)
        >>> params = model.init(jax.random.key(0), tokens)["params"]
        >>> logits = model.apply({"params": params}, tokens)
    """

    config: xLSTMLMModelConfig

    fixed_state: ClassVar[bool] = True
    """The state of a text has one size, however long the text is."""

    def setup(self) -> None:
        cfg = self.config
        if cfg.vocab_size < 1:
            raise ConfigError(f"xLSTMLMModelConfig.vocab_size is {cfg.vocab_size}, but must be set to build the model")
        embed_init = small_init(cfg.embedding_dim, cfg.init_distribution_embed)
        self.token_embedding = Embedding(cfg.vocab_size, cfg.embedding_dim, cfg._dtype, embed_init)
        self.embedding_dropout = nn.Dropout(cfg.dropout if cfg.add_embedding_dropout else 0.0)
        self.xlstm_block_stack = xLSTMBlockStack(cfg)
        head_init = small_init(cfg.embedding_dim, cfg.init_distribution_out)
        self.lm_head = LMHead(cfg.vocab_size, head_init, cfg._lm_head_dtype, cfg.logits_soft_cap)

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
            document_borders: true at the first token of a document; acts if the cell's config has
                `reset_at_document_boundaries`.
            mask: false at padding, anywhere in a row: the other positions' results are as if it were not there. Its own
                are arbitrary, but finite.
            state: what an earlier call returned, or `init_state`; None for an empty one.
            return_state: also return the state after the last token.
            train: switches dropout on, which then needs `rngs={"dropout": key}`.

        Returns:
            float32 logits (batch, seq, vocab), or (logits, state).

        Raises:
            ValueError: for arguments whose shapes or dtypes do not fit.
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
        check_inputs(tokens, document_borders=document_borders, mask=mask)
        if mask is not None:
            tokens = jnp.where(mask, tokens, 0)
        x = call_part("Embed", self.config.parallel, lambda embed, tokens: embed(tokens), self.token_embedding, tokens)
        x = self.embedding_dropout(x, deterministic=not train)
        return self.xlstm_block_stack(
            x, document_borders=document_borders, mask=mask, state=state, return_state=return_state, train=train
        )

    def head(self, features: Float[Array, "*shape dim"]) -> Float[Array, "*shape vocab"]:
        """The float32 logits of hidden states that `features` returned, soft-capped."""
        kernel = self.token_embedding.embedding if self.config.tie_weights else None
        return call_part(
            "LMHead", self.config.parallel, lambda head, x, kernel: head(x, kernel), self.lm_head, features, kernel
        )

    @nn.nowrap
    def init_state(self, batch_size: int, max_length: int | None = None) -> Any:
        """The state before the first token.

        A tuple with one entry a block, whose arrays have the batch as axis 0; with `scan_blocks` one entry, whose
        arrays have the block as axis 0 and the batch as axis 1. It has one size for texts of any length, so
        `max_length`, which other models need, changes nothing.
        """
        return xLSTMBlockStack(self.config, parent=None).init_state(batch_size)

    @property
    def param_count(self) -> int:
        """Number of parameters; no array is made."""
        kinds = self.config.block_map

        def count(kind: int, blocks: int) -> int:
            config = replace(self.config, num_blocks=blocks, scan_blocks=True, slstm_at="all" if kind == SLSTM else [])
            model = xLSTMLMModel(config, parent=None)
            shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
            return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

        first, *others = sorted(set(kinds))
        # What stands around the blocks is counted once.
        return count(first, kinds.count(first)) + sum(
            count(kind, kinds.count(kind) + 1) - count(kind, 1) for kind in others
        )

    @property
    def state_bytes(self) -> int:
        """Size of the state of one sequence, in bytes."""
        shapes = jax.eval_shape(lambda: self.init_state(1))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    @nn.nowrap
    def flops_per_token(self, seq: int, train: bool = False) -> float:
        """Floating-point operations per token in matrix products at sequence length `seq`.

        Each causal product is counted once, the cell at a chunk length of 64; no recomputation, no elementwise work
        and no look-up of embeddings. `train=True` counts forward and backward: three times as much.
        """
        cfg = self.config
        blocks = sum(cfg.block_config(i).matmul_flops(seq) for i in range(cfg.num_blocks))
        forward = blocks + 2 * cfg.embedding_dim * cfg.vocab_size
        return float(3 * forward if train else forward)
