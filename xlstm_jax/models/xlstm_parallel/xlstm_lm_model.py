"""The xLSTM language model: tokens in, logits out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp

from xlstm_jax.config import PositiveFloat, PositiveInt
from xlstm_jax.models.causal_lm import CausalLM
from xlstm_jax.models.configs import FloatName
from xlstm_jax.models.xlstm_parallel.xlstm_block_stack import xLSTMBlockStackConfig


@dataclass
class xLSTMLMModelConfig(xLSTMBlockStackConfig):
    """The stack, with what makes a language model of it."""

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


class xLSTMLMModel(CausalLM):
    """The language model of mLSTM and sLSTM blocks; its stack is the parameter xlstm_block_stack."""

    config: xLSTMLMModelConfig

    stack_name: ClassVar[str] = "xlstm_block_stack"
