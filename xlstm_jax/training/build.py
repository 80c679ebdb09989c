"""From an experiment to its model, its optimizer and the state before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_jax.config import ConfigError, to_json
from xlstm_jax.models.language_model import LanguageModel, build_model
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.optimizers import Optimizer
from xlstm_jax.training.step import TrainState, init_state


def refuse_lost_precision(experiment: Experiment) -> None:
    """Refuse a model in float64 where JAX would make float32 of it.

    Raises:
        ConfigError: with the field.
    """
    settings: Any = jax.config  # its options are attributes that type checkers do not see
    path = next(_paths_of("float64", to_json(experiment.model), "model"), None)
    if path is not None and not settings.jax_enable_x64:
        raise ConfigError(f"{path} is 'float64', which JAX computes in with JAX_ENABLE_X64=1 in the environment alone")


def _paths_of(value: str, tree: Any, path: str) -> Iterator[str]:
    if tree == value:
        yield path
    for name, inner in tree.items() if isinstance(tree, dict) else ():
        yield from _paths_of(value, inner, f"{path}.{name}")


def build(experiment: Experiment) -> tuple[LanguageModel, Optimizer]:
    """The experiment's model and optimizer."""
    model = build_model(experiment.model)
    decay_embedding = experiment.model.weight_decay_on_embedding
    return model, experiment.optimizer.build(experiment.training.steps, decay_embedding=decay_embedding)


def fresh_state(model: Any, optimizer: Optimizer, experiment: Experiment) -> TrainState:
    """The state before the first step."""
    return init_state(model, optimizer, experiment.training.seed, jnp.zeros((1, 1), jnp.int32))
