"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import optax

from xlstm_jax.config import NonNegativeFloat, PositiveFloat
from xlstm_jax.training.optimizers.chain import Beta, ChainConfig


@dataclass
class SGDConfig(ChainConfig):
    """Gradient descent with momentum (Sutskever et al. 2013). Its decay is decoupled as AdamW's (SGDW, Loshchilov and
    Hutter, arXiv 1711.05101); rate and decay are those of He et al., arXiv 1512.03385."""

    name: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.1
    weight_decay: NonNegativeFloat = 1e-4
    momentum: Beta = 0.9
    nesterov: bool = False
    """Whether the gradient is taken where the momentum leads to."""

    def direction(self, total_steps: int) -> optax.GradientTransformation:
        """See `ChainConfig.direction`."""
        return optax.trace(self.momentum, self.nesterov)
