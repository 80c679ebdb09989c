"""AdEMAMix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from xlstm_jax.config import Above, Below, NonNegativeFloat, NonNegativeInt, PositiveFloat
from xlstm_jax.training.optimizers.chain import Beta, ChainConfig

OpenBeta = Annotated[float, Above(0), Below(1)]


@dataclass
class AdEMAMixConfig(ChainConfig):
    """AdEMAMix (Pagliardini et al., arXiv 2409.03137): AdamW with a second, slow mean of the gradients."""

    name: Literal["ademamix"] = "ademamix"
    betas: tuple[OpenBeta, Beta, OpenBeta] = (0.9, 0.999, 0.9999)
    """Of the fast mean, of the squares, and of the slow mean."""
    alpha: NonNegativeFloat = 8.0
    """The weight of the slow mean; the fast one has 1."""
    eps: PositiveFloat = 1e-8
    alpha_warmup: NonNegativeInt | None = None
    """Steps over which `alpha` rises from 0; all of the training if not given, as in the paper."""
    beta3_warmup: NonNegativeInt | None = None
    """Steps over which the slow mean becomes as slow as it shall be; all of the training if not given, as in the
    paper."""

    def direction(self, total_steps: int) -> optax.GradientTransformation:
        """See `ChainConfig.direction`."""
        fast, squares, slow = self.betas
        alpha_steps = total_steps if self.alpha_warmup is None else self.alpha_warmup
        slow_steps = total_steps if self.beta3_warmup is None else self.beta3_warmup

        def alpha(count: jax.typing.ArrayLike) -> jax.Array:
            return self.alpha * _progress(count, alpha_steps)

        def beta3(count: jax.typing.ArrayLike) -> jax.Array:
            # The memory in steps, about 1 / -log(beta), grows in equal parts: the paper's equation for f_beta3.
            progress = _progress(count, slow_steps)
            return jnp.exp(1 / ((1 - progress) / math.log(fast) + progress / math.log(slow)))

        return optax.contrib.scale_by_ademamix(fast, squares, beta3, alpha, self.eps)


def _progress(count: jax.typing.ArrayLike, steps: int) -> jax.Array:
    """The share of a warm-up that the update after `count` others has come to."""
    return jnp.minimum((jnp.asarray(count, float) + 1) / max(steps, 1), 1.0)
