"""A Transformer for a laptop, to compare with."""

from __future__ import annotations

import dataclasses

from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.presets.quickstart import quickstart
from xlstm_jax.training.config import Experiment


def quickstart_llama() -> Experiment:
    """The quickstart with a Llama-style Transformer of the same size, on the same data with the same recipe.

    Command: `xlstm train quickstart_llama`. Its held-out files are read in windows of the 256 tokens that it was
    trained on, which overlap by half.
    """
    experiment = quickstart()
    model = LlamaConfig(embedding_dim=256, num_blocks=4, context_length=experiment.model.context_length, head_dim=64)
    return dataclasses.replace(experiment, model=model)
