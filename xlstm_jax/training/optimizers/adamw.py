"""AdamW: clip -> Adam -> decay -> learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import optax

from xlstm_jax.config import AtLeast, Below, NonNegativeFloat, PositiveFloat
from xlstm_jax.models.parameters import Leaf, describe
from xlstm_jax.training.optimizers.schedule import Optimizer, ScheduledConfig, learning_rate


@dataclass
class OptimizerConfig(ScheduledConfig):
    """AdamW with decoupled weight decay (scaled by the learning rate), clipping by the global norm and a schedule."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, AtLeast(0), Below(1)], Annotated[float, AtLeast(0), Below(1)]] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    decay_mask: Literal["kernels", "all"] = "kernels"
    """What decays: `kernels` as in the published runs (no embedding, norm or bias), or every parameter."""
    grad_clip_norm: PositiveFloat | None = 1.0
    """Gradients of a larger global norm are scaled down to it."""

    def build(self, total_steps: int, *, decay_embedding: bool = False) -> Optimizer:
        """See `ScheduledConfig.build`."""
        # Always two links, so that a checkpoint fits whether or not gradients are clipped.
        clip = optax.identity() if self.grad_clip_norm is None else optax.clip_by_global_norm(self.grad_clip_norm)
        rate = learning_rate(self, total_steps)
        adamw = optax.adamw(
            rate,
            b1=self.betas[0],
            b2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=lambda params: decay_mask(params, self, decay_embedding),
        )
        chain = optax.chain(clip, adamw)
        return Optimizer(chain.init, chain.update, rate)


def decay_mask(params: Any, config: OptimizerConfig, decay_embedding: bool = False) -> Any:
    """A tree of booleans, true where weight decay applies.

    `kernels` follows the published runs; the embedding joins them when `decay_embedding` is set.
    """

    def decays(leaf: Leaf) -> bool:
        return config.decay_mask == "all" or leaf.decays or (decay_embedding and leaf.part == "embedding")

    return jax.tree.map(decays, describe(params), is_leaf=lambda leaf: isinstance(leaf, Leaf))
