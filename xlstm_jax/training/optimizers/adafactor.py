"""Adafactor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import optax

from xlstm_jax.config import AtLeast, NonNegativeFloat, PositiveFloat, PositiveInt
from xlstm_jax.training.optimizers.chain import ChainConfig, described


@dataclass
class AdafactorConfig(ChainConfig):
    """Adafactor (Shazeer and Stern, arXiv 1804.04235) without momentum: of a matrix's squared gradients it keeps the
    means of rows and of columns, next to nothing beside the parameters."""

    name: Literal["adafactor"] = "adafactor"
    lr: PositiveFloat = 1e-2
    """Learning rate at its peak, as a share of each parameter's root mean square."""
    weight_decay: NonNegativeFloat = 0.0
    decay_rate: PositiveFloat = 0.8
    """After t steps the means of squares keep 1 - t ** -decay_rate."""
    clipping_threshold: Annotated[float, AtLeast(1)] | None = 1.0
    """The largest root mean square of a parameter's update, before the learning rate."""
    multiply_by_parameter_scale: bool = True
    """Whether updates are relative to the parameter's root mean square; else the learning rate is absolute."""
    min_dim_size_to_factor: PositiveInt = 128
    """Arrays of which fewer than two axes are this long keep all squares."""
    eps: PositiveFloat = 1e-30
    """Added to the squares."""

    def direction(self, total_steps: int) -> optax.GradientTransformation:
        """See `ChainConfig.direction`."""
        links = [
            optax.scale_by_factored_rms(
                decay_rate=self.decay_rate, min_dim_size_to_factor=self.min_dim_size_to_factor, epsilon=self.eps
            )
        ]
        if self.clipping_threshold is not None:
            links.append(optax.clip_by_block_rms(self.clipping_threshold))
        if self.multiply_by_parameter_scale:
            links.append(optax.scale_by_param_block_rms())
        return block_by_block(optax.chain(*links))


def block_by_block(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that depends on whole arrays, over the blocks of a run as if each had arrays of its own."""
    over_blocks = optax.GradientTransformation(jax.vmap(transform.init), jax.vmap(transform.update))

    def parted(params: Any) -> optax.GradientTransformation:
        in_runs = described(params, lambda leaf: leaf.axes[0] == "block")
        labels = jax.tree.map(lambda in_run, x: f"runs_of_{x.shape[0]}" if in_run else "alone", in_runs, params)
        by_label: Mapping[str, Any] = {
            label: transform if label == "alone" else over_blocks for label in jax.tree.leaves(labels)
        }
        return optax.partition(by_label, labels)

    return optax.GradientTransformation(
        lambda params: parted(params).init(params),
        lambda updates, state, params: parted(params).update(updates, state, params),
    )
