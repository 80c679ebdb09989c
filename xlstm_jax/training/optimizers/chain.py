"""What all optimizers have in common: clip -> the optimizer's direction -> decay -> learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import optax

from xlstm_jax.config import AtLeast, Below, NonNegativeFloat, PositiveFloat
from xlstm_jax.models.parameters import Leaf, describe
from xlstm_jax.training.optimizers.schedule import Optimizer, ScheduledConfig, learning_rate

Beta = Annotated[float, AtLeast(0), Below(1)]
"""How much of a running mean is kept in a step."""


@dataclass
class ChainConfig(ScheduledConfig):
    """Clipping by the global norm, decoupled weight decay (scaled by the learning rate) and a schedule."""

    weight_decay: NonNegativeFloat = 0.1
    decay_mask: Literal["kernels", "all"] = "kernels"
    """What decays: `kernels` as in the published runs (no embedding, norm or bias), or every parameter."""
    grad_clip_norm: PositiveFloat | None = 1.0
    """Gradients of a larger global norm are scaled down to it."""

    def direction(self, total_steps: int) -> optax.GradientTransformation:
        """From clipped gradients to what the learning rate multiplies, before decay."""
        raise NotImplementedError

    def build(self, total_steps: int, *, decay_embedding: bool = False) -> Optimizer:
        """See `ScheduledConfig.build`."""
        # Always two links, so that a checkpoint fits whether or not gradients are clipped.
        clip = optax.identity() if self.grad_clip_norm is None else optax.clip_by_global_norm(self.grad_clip_norm)
        rate = learning_rate(self, total_steps)
        decay = optax.add_decayed_weights(self.weight_decay, lambda params: decay_mask(params, self, decay_embedding))
        update = optax.chain(self.direction(total_steps), decay, optax.scale_by_learning_rate(rate))
        chain = optax.chain(clip, update)
        return Optimizer(chain.init, chain.update, rate)


def described(tree: Any, what: Any) -> Any:
    """A tree of what a function says of each parameter's `Leaf`."""
    return jax.tree.map(what, describe(tree), is_leaf=lambda leaf: isinstance(leaf, Leaf))


def decay_mask(params: Any, config: ChainConfig, decay_embedding: bool = False) -> Any:
    """A tree of booleans, true where weight decay applies.

    `kernels` follows the published runs; the embedding joins them when `decay_embedding` is set.
    """

    def decays(leaf: Leaf) -> bool:
        return config.decay_mask == "all" or leaf.decays or (decay_embedding and leaf.part == "embedding")

    return described(params, decays)
