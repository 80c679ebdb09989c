"""How the learning rate moves, and what all optimizers have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xlstm_jax.config import Config, ConfigError, NonNegativeInt, PositiveFloat, Share


class Optimizer(NamedTuple):
    """A transformation of optax, and the learning rate that it uses."""

    init: optax.TransformInitFn
    update: Any
    learning_rate: optax.Schedule
    """A function of the number of updates made so far."""


@dataclass
class ScheduledConfig(Config):
    """What every optimizer has: its name and a learning rate that moves."""

    name: str = ""
    lr: PositiveFloat = 1e-3
    """Learning rate at its peak."""
    schedule: Literal["cosine", "linear", "exponential", "constant"] = "cosine"
    """How the rate falls from its peak after the warm-up to `end_lr_factor` of it before the cool-down."""
    warmup_steps: NonNegativeInt = 100
    end_lr_factor: Share = 0.1
    cooldown_steps: NonNegativeInt = 0
    """Steps at the end over which the rate falls on towards 0, in equal parts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "exponential" and self.end_lr_factor == 0:
            kind = type(self).__name__
            raise ConfigError(f"{kind}.end_lr_factor is 0, but must be > 0 for the schedule 'exponential'")

    def build(self, total_steps: int, *, decay_embedding: bool = False) -> Optimizer:
        """The optimizer of a training.

        Args:
            total_steps: the number of updates over which the schedule runs.
            decay_embedding: whether the embedding decays with the kernels (`model.weight_decay_on_embedding`).
        """
        raise NotImplementedError


def learning_rate(config: ScheduledConfig, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates made so far.

    The warm-up rises in equal parts and reaches the peak with update `warmup_steps`, so that the first update already
    has a rate above zero. Then comes the decay, which ends at `end_lr_factor` of the peak with the last update before
    the cool-down. This leads on towards zero in equal parts, but keeps the last update above it; without one the rate
    stays where the decay ended.
    """
    warmup, cooldown = config.warmup_steps, config.cooldown_steps
    decay_steps = max(total_steps - warmup - cooldown - 1, 1)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.asarray(count, jnp.float32)
        rise = (done + 1) / max(warmup, 1)
        progress = jnp.clip((done - warmup) / decay_steps, 0.0, 1.0)
        if config.schedule == "cosine":
            left = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif config.schedule == "linear":
            left = 1 - progress
        else:
            left = jnp.ones_like(progress)
        decay = config.end_lr_factor + (1 - config.end_lr_factor) * left
        if config.schedule == "exponential":
            decay = jnp.asarray(config.end_lr_factor, jnp.float32) ** progress
        if cooldown:
            decay *= jnp.clip((total_steps - done) / (cooldown + 1), 0.0, 1.0)
        return config.lr * jnp.where(done < warmup, jnp.minimum(rise, 1.0), jnp.minimum(decay, 1.0))

    return schedule
