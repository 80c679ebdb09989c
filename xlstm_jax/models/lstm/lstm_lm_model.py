"""The LSTM language model: tokens in, logits out."""

from __future__ import annotations

from flax import linen as nn
from jax.nn.initializers import Initializer

from xlstm_jax.models.causal_lm import CausalLM
from xlstm_jax.models.lstm.config import LSTMConfig


class LSTMLMModel(CausalLM):
    """The language model of LSTM layers; its stack is the parameter block_stack.

    Embeddings are of size one at first: no norm stands between them and the first layer.
    """

    config: LSTMConfig

    @nn.nowrap
    def _embed_init(self) -> Initializer:
        return nn.initializers.normal(1.0)
