"""The Llama language model: tokens in, logits out."""

from __future__ import annotations

from flax import linen as nn

from xlstm_jax.models.llama.config import LlamaConfig


class LlamaLMModel(nn.Module):
    """Embedding, stack of blocks, final norm, head."""

    config: LlamaConfig
