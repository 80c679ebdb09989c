"""Lion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import optax

from xlstm_jax.config import NonNegativeFloat, PositiveFloat
from xlstm_jax.training.optimizers.chain import Beta, ChainConfig


@dataclass
class LionConfig(ChainConfig):
    """Lion (Chen et al., arXiv 2302.06675): every parameter moves by the sign of its momentum. Next to AdamW it takes a
    tenth to a third of the learning rate, and so much more decay."""

    name: Literal["lion"] = "lion"
    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 1.0
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Of the mean whose sign is taken, and of the momentum that is kept. For stable training of language models the
    paper has 0.95 and 0.98."""

    def direction(self, total_steps: int) -> optax.GradientTransformation:
        """See `ChainConfig.direction`."""
        return optax.scale_by_lion(*self.betas)
