"""From an experiment to its model, its optimizer and the state before the first step."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from xlstm_jax.models.language_model import LanguageModel, build_model
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.optimizers import Optimizer
from xlstm_jax.training.step import TrainState, init_state


def build(experiment: Experiment) -> tuple[LanguageModel, Optimizer]:
    """The experiment's model and optimizer."""
    model = build_model(experiment.model)
    decay_embedding = experiment.model.weight_decay_on_embedding
    return model, experiment.optimizer.build(experiment.training.steps, decay_embedding=decay_embedding)


def fresh_state(model: Any, optimizer: Optimizer, experiment: Experiment) -> TrainState:
    """The state before the first step."""
    return init_state(model, optimizer, experiment.training.seed, jnp.zeros((1, 1), jnp.int32))
