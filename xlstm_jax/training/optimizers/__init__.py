"""What turns gradients into updates, a file an optimizer.

To add one: a dataclass derived from `ChainConfig` with a `name` of its own and `direction` (from `ScheduledConfig` with
`build`, if clipping and decay are not for it), in a file here, and its name in `AnyOptimizerConfig`, by which configs
tell it from the others.
"""

from __future__ import annotations

from xlstm_jax.training.optimizers.adafactor import AdafactorConfig
from xlstm_jax.training.optimizers.adamw import OptimizerConfig
from xlstm_jax.training.optimizers.ademamix import AdEMAMixConfig
from xlstm_jax.training.optimizers.chain import ChainConfig
from xlstm_jax.training.optimizers.lion import LionConfig
from xlstm_jax.training.optimizers.muon import MuonConfig
from xlstm_jax.training.optimizers.schedule import Optimizer, ScheduledConfig, learning_rate
from xlstm_jax.training.optimizers.sgd import SGDConfig

AnyOptimizerConfig = OptimizerConfig | AdafactorConfig | AdEMAMixConfig | LionConfig | MuonConfig | SGDConfig
"""The union of all; `name` says which of them a config is."""

__all__ = [
    "AdEMAMixConfig",
    "AdafactorConfig",
    "AnyOptimizerConfig",
    "ChainConfig",
    "LionConfig",
    "MuonConfig",
    "Optimizer",
    "OptimizerConfig",
    "SGDConfig",
    "ScheduledConfig",
    "learning_rate",
]
