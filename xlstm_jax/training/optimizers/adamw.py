"""AdamW: clip -> Adam -> decay -> learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from xlstm_jax.config import ConfigError, check_choice, check_number
from xlstm_jax.models.parameters import Leaf, describe
from xlstm_jax.training.optimizers.schedule import Optimizer, ScheduledConfig, learning_rate


@dataclass
class OptimizerConfig(ScheduledConfig):
    """AdamW with decoupled weight decay (scaled by the learning rate), clipping by the global norm and a schedule."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_mask: Literal["kernels", "all"] = "kernels"
    """What decays: `kernels` as in the published runs (no embedding, norm or bias), or every parameter."""
    grad_clip_norm: float | None = 1.0
    """Gradients of a larger global norm are scaled down to it."""

    def __post_init__(self) -> None:
        self.betas = tuple(self.betas)  # type: ignore[assignment]
        check_choice(self, "name", ("adamw",))
        super().__post_init__()
        check_choice(self, "decay_mask", ("kernels", "all"))
        check_number(self, "eps", above=0)
        check_number(self, "weight_decay", at_least=0)
        check_number(self, "grad_clip_norm", above=0, optional=True)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"OptimizerConfig.betas is {self.betas!r}, but must be two numbers >= 0 and < 1")

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
