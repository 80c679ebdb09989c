"""What turns gradients into updates, a file an optimizer.

To add one: a dataclass derived from `ScheduledConfig` with a `name` of its own and `build`, in a file here, and its
name in `AnyOptimizerConfig`, by which configs tell it from the others.
"""

from __future__ import annotations

from xlstm_jax.training.optimizers.adamw import OptimizerConfig
from xlstm_jax.training.optimizers.schedule import Optimizer, ScheduledConfig, learning_rate

AnyOptimizerConfig = OptimizerConfig
"""The union of all; `name` says which of them a config is."""

__all__ = ["AnyOptimizerConfig", "Optimizer", "OptimizerConfig", "ScheduledConfig", "learning_rate"]
