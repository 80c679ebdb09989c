"""The language models of this package, each built from its config."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from xlstm_jax.models.causal_lm import CausalLM
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.llama.llama_lm_model import LlamaLMModel
from xlstm_jax.models.lstm.config import LSTMConfig
from xlstm_jax.models.lstm.lstm_lm_model import LSTMLMModel
from xlstm_jax.models.shapes import shapes_of
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel, xLSTMLMModelConfig

LanguageModelConfig = xLSTMLMModelConfig | LlamaConfig | LSTMConfig
LanguageModel = CausalLM

_MODELS: dict[type, type[CausalLM]] = {
    LlamaConfig: LlamaLMModel,
    xLSTMLMModelConfig: xLSTMLMModel,
    LSTMConfig: LSTMLMModel,
}


def build_model(config: LanguageModelConfig) -> LanguageModel:
    """The language model of a config.

    Raises:
        TypeError: for something else than the config of a language model.
    """
    for kind, model in _MODELS.items():
        if isinstance(config, kind):
            return model(config)
    names = " or ".join(sorted((kind.__name__ for kind in _MODELS), reverse=True))
    raise TypeError(f"config is {type(config).__name__}, but must be {names}")


def param_shapes(config: LanguageModelConfig) -> dict[str, Any]:
    """The tree of `build_model(config)`'s parameters with shapes and dtypes for arrays; nothing is made."""
    return shapes_of(build_model(config))


def block_shapes(config: LanguageModelConfig) -> dict[str, tuple[int, ...]]:
    """Path (keys joined by dots) -> shape of every parameter of the model with each block by itself."""
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(dataclasses.replace(config, scan_blocks=False)))
    return {".".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def with_exact_resets(config: LanguageModelConfig) -> LanguageModelConfig:
    """A config of the same parameters whose model starts every document from an empty memory."""
    return config.with_exact_resets()
