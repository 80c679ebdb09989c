"""AdamW: which parameters decay, how the learning rate moves, and the optax chain made of both."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xlstm_jax.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
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


def decay_mask(params: Any, config: OptimizerConfig, decay_embedding: bool = False) -> Any:
    """A tree of booleans, true where weight decay applies.

    `kernels` follows the published runs, which decay every parameter with `kernel` in its path; the embedding joins
    them when `decay_embedding` is set.
    """

    def decays(path: tuple, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if config.decay_mask == "all" or "kernel" in name:
            return True
        return decay_embedding and "embedding" in name

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    config: OptimizerConfig, total_steps: int, *, decay_embedding: bool = False
) -> optax.GradientTransformation:
    """The chain clip -> Adam -> decay -> learning rate.

    Args:
        config: rates, decay, clipping.
        total_steps: the number of updates over which the schedule runs.
        decay_embedding: whether the embedding decays under the mask `kernels` (`model.weight_decay_on_embedding`).
    """
    # Always two links, so that a checkpoint fits whether or not gradients are clipped.
    clip = optax.identity() if config.grad_clip_norm is None else optax.clip_by_global_norm(config.grad_clip_norm)
    adamw = optax.adamw(
        learning_rate(config, total_steps),
        b1=config.betas[0],
        b2=config.betas[1],
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda params: decay_mask(params, config, decay_embedding),
    )
    return optax.chain(clip, adamw)
