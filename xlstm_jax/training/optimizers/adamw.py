"""AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import optax

from xlstm_jax.config import PositiveFloat
from xlstm_jax.training.optimizers.chain import Beta, ChainConfig


@dataclass
class OptimizerConfig(ChainConfig):
    """AdamW with decoupled weight decay (scaled by the learning rate), clipping by the global norm and a schedule."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8

    def direction(self, total_steps: int) -> optax.GradientTransformation:
        """See `ChainConfig.direction`."""
        return optax.scale_by_adam(*self.betas, eps=self.eps)
