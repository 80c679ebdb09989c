"""The LSTM language model: tokens in, logits out."""

from __future__ import annotations

from xlstm_jax.models.causal_lm import CausalLM
from xlstm_jax.models.lstm.config import LSTMConfig


class LSTMLMModel(CausalLM):
    """The language model of LSTM layers; its stack is the parameter block_stack."""

    config: LSTMConfig
