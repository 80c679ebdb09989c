"""The config of an LSTM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from xlstm_jax.config import Depth, DropoutRate, PositiveFloat, PositiveInt, SizeOrUnset
from xlstm_jax.models.configs import FloatName, ParallelConfig, SubModelConfig
from xlstm_jax.models.shared.init import InitDistribution


@dataclass
class LSTMConfig(SubModelConfig):
    """Layers of LSTM cells one upon another, with neither norms nor residuals nor feed-forward layers between them."""

    embedding_dim: PositiveInt = 128
    """Cells of a layer, and size of the embedding."""
    num_blocks: Depth = 2
    vocab_size: PositiveInt | Literal[-1] = -1
    """Number of tokens; must be set to build the model."""
    context_length: SizeOrUnset = -1
    """Length of training sequences; never a limit."""
    forget_bias: float = 1.0
    """Added to the initial bias of the forget gates (Jozefowicz et al., 2015)."""
    reset_at_document_boundaries: bool = True
    """Start with an empty memory at every document border."""
    tie_weights: bool = False
    """Use the embedding as the head's kernel."""
    logits_soft_cap: PositiveFloat | None = None
    """Soft cap for the logits; None for no cap."""
    lm_head_dtype: FloatName = "float32"
    """Dtype of the product with the head; logits are float32."""
    scan_blocks: bool = False
    """Compile one layer and scan over it; the parameters of all layers lie in one array along a leading axis."""
    dropout: DropoutRate = 0.0
    """Rate of the dropout after each layer, on in training only."""
    add_embedding_dropout: bool = False
    """Dropout, at the rate `dropout`, on the embedded tokens too."""
    weight_decay_on_embedding: bool = False
    """Whether the optimizer decays the embedding."""
    dtype: FloatName = "float32"
    """Dtype of activations; gates and states are at least float32."""
    parallel: ParallelConfig | None = None

    # What a stack of blocks asks its config.

    norm_type: ClassVar[Literal["layernorm"]] = "layernorm"
    add_post_blocks_norm: ClassVar[bool] = False
    init_distribution_embed: ClassVar[InitDistribution] = "normal"
    init_distribution_out: ClassVar[InitDistribution] = "normal"

    @property
    def block_kinds(self) -> tuple[str, ...]:
        """The name of the kind of each block."""
        return ("lstm",) * self.num_blocks

    def block_config(self, index: int) -> Self:
        """The config of the block at that place: this one."""
        return self

    def matmul_flops(self, seq: int) -> float:
        """Floating-point operations per token of a layer in matrix products, forward."""
        return 16 * self.embedding_dim**2

    def with_exact_resets(self) -> Self:
        """A copy whose model, of the same parameters, starts every document from an empty memory."""
        return replace(self, reset_at_document_boundaries=True)
