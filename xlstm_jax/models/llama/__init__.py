"""A Transformer of the Llama design, behind the language-model interface of the xLSTM."""

from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.llama.llama_lm_model import LlamaLMModel

__all__ = ["LlamaConfig", "LlamaLMModel"]
