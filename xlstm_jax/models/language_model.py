"""The language models of this package, behind one interface: that of `xLSTMLMModel`."""

from __future__ import annotations

from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.llama.llama_lm_model import LlamaLMModel
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel, xLSTMLMModelConfig

LanguageModelConfig = xLSTMLMModelConfig | LlamaConfig
LanguageModel = xLSTMLMModel | LlamaLMModel


def build_model(config: LanguageModelConfig) -> LanguageModel:
    """The language model of a config.

    Raises:
        TypeError: for something else than the config of a language model.
    """
    if isinstance(config, LlamaConfig):
        return LlamaLMModel(config)
    if isinstance(config, xLSTMLMModelConfig):
        return xLSTMLMModel(config)
    raise TypeError(f"config is {type(config).__name__}, but must be xLSTMLMModelConfig or LlamaConfig")
