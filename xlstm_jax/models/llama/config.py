"""The config of a Llama-style Transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from xlstm_jax.config import ConfigError, Depth, DropoutRate, PositiveFloat, PositiveInt, SizeOrUnset
from xlstm_jax.models.configs import FloatName, ParallelConfig, SubModelConfig
from xlstm_jax.models.shared.init import InitDistribution


@dataclass
class LlamaConfig(SubModelConfig):
    """A decoder of RMSNorm, rotary positions and SwiGLU (Touvron et al., arXiv 2302.13971).

    It has `embedding_dim / head_dim` query heads.
    """

    embedding_dim: PositiveInt = 768
    num_blocks: Depth = 12
    vocab_size: PositiveInt | Literal[-1] = -1
    """Number of tokens; must be set to build the model."""
    context_length: SizeOrUnset = -1
    """Length of training sequences, and of the key-value cache where no other length is asked for."""
    head_dim: PositiveInt = 128
    """Size of a head; must divide embedding_dim, and be even for the rotary positions."""
    num_kv_heads: PositiveInt | None = None
    """Heads of keys and values, each shared by a group of query heads (arXiv 2305.13245); None: one a query head."""
    qk_norm: bool = False
    """RMSNorm on queries and keys, head by head, before the rotation."""
    theta: PositiveFloat = 1e4
    """Base of the rotary frequencies."""
    ffn_dim: PositiveInt | None = None
    """Width of the feed-forward layer; None: 8/3 of embedding_dim times `ffn_dim_multiplier`, rounded up to a multiple
    of `ffn_multiple_of`."""
    ffn_multiple_of: PositiveInt = 64
    ffn_dim_multiplier: PositiveFloat = 1.0
    use_bias: bool = False
    """Biases in every linear map of the blocks."""
    norm_eps: PositiveFloat = 1e-6
    tie_weights: bool = False
    """Use the embedding as the head's kernel."""
    logits_soft_cap: PositiveFloat | None = None
    """Soft cap for the logits; None for no cap."""
    lm_head_dtype: FloatName = "float32"
    """Dtype of the product with the head; logits are float32."""
    mask_across_document_boundaries: bool = True
    """No token sees those of another document, and each document's positions begin at 0."""
    attention_scale: Literal["head_dim", "num_heads"] = "head_dim"
    """What queries times keys are divided by the square root of; "num_heads" is for weights that were trained so."""
    scan_blocks: bool = False
    """Compile one block and scan over it; the parameters of all blocks lie in one array along a leading axis."""
    dropout: DropoutRate = 0.0
    """Rate of the dropout after each layer, on in training only."""
    add_embedding_dropout: bool = False
    """Dropout, at the rate `dropout`, on the embedded tokens too."""
    weight_decay_on_embedding: bool = False
    """Whether the optimizer decays the embedding."""
    dtype: FloatName = "float32"
    """Dtype of activations and of the cache; parameters are float32."""
    parallel: ParallelConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 2:
            raise ConfigError(f"LlamaConfig.head_dim is {self.head_dim}, but must be even for the rotary positions")
        if self.embedding_dim % self.head_dim:
            raise ConfigError(
                f"LlamaConfig.head_dim is {self.head_dim}, but must divide embedding_dim = {self.embedding_dim}"
            )
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"LlamaConfig.num_kv_heads is {self.num_kv_heads}, but must divide the number of query heads, "
                f"embedding_dim / head_dim = {self.num_heads}"
            )

    @property
    def num_heads(self) -> int:
        """Number of query heads."""
        return self.embedding_dim // self.head_dim

    @property
    def heads(self) -> int:
        """As other blocks call them."""
        return self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward layer."""
        if self.ffn_dim is not None:
            return self.ffn_dim
        width = int(self.ffn_dim_multiplier * int(8 * self.embedding_dim / 3))
        return math.ceil(width / self.ffn_multiple_of) * self.ffn_multiple_of

    @property
    def qk_scale(self) -> float:
        """The factor of queries times keys."""
        return (self.head_dim if self.attention_scale == "head_dim" else self.num_heads) ** -0.5

    # What a stack of blocks asks its config.

    norm_type: ClassVar[Literal["rmsnorm"]] = "rmsnorm"
    add_post_blocks_norm: ClassVar[bool] = True
    init_distribution_embed: ClassVar[InitDistribution] = "normal"
    init_distribution_out: ClassVar[InitDistribution] = "normal"

    @property
    def block_kinds(self) -> tuple[str, ...]:
        """The name of the kind of each block."""
        return ("attention",) * self.num_blocks

    def block_config(self, index: int) -> Self:
        """The config of the block at that place: this one."""
        return self

    def matmul_flops(self, seq: int) -> float:
        """Floating-point operations per token of a block in matrix products, forward, at sequence length `seq`; of
        queries times keys and weights times values the causal half."""
        dim, width = self.embedding_dim, self.num_heads * self.head_dim
        maps = 2 * dim * (2 * width + 2 * self.kv_heads * self.head_dim) + 6 * dim * self.ffn_width
        return maps + 2 * width * (seq + 1)

    def with_exact_resets(self) -> Self:
        """A copy whose model, of the same parameters, keeps documents apart."""
        return replace(self, mask_across_document_boundaries=True)
