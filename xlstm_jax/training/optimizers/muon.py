"""Muon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from xlstm_jax.config import PositiveFloat, PositiveInt
from xlstm_jax.distributed.constrain import on_whole_matrices
from xlstm_jax.training.optimizers.chain import Beta, ChainConfig, described

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the iteration's polynomial; steep at 0, so that small singular values rise in few steps."""


@dataclass
class MuonConfig(ChainConfig):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): the momentum of a matrix, made nearly
    orthogonal. Only dense maps inside blocks are such matrices; all else (embedding, head, norms, biases, gates,
    block-diagonal maps, convolutions) has Adam. Updates are scaled to the size of AdamW's (Liu et al., arXiv
    2502.16982), so that both halves, and a training with AdamW, take the same learning rate and decay."""

    name: Literal["muon"] = "muon"
    momentum: Beta = 0.95
    nesterov: bool = True
    """Whether the gradient is taken where the momentum leads to."""
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations."""
    consistent_rms: PositiveFloat = 0.2
    """The root mean square of a matrix's update, before the learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Of Adam."""
    eps: PositiveFloat = 1e-8
    """Added to what is divided by: in Adam, and to the norms of matrices."""

    def direction(self, total_steps: int) -> optax.GradientTransformation:
        """See `ChainConfig.direction`."""

        def orthogonal(momentum: Any, params: Any = None) -> Any:
            return jax.tree.map(lambda x: self.consistent_rms * self._orthogonal(x), momentum)

        matrices = optax.chain(optax.trace(self.momentum, self.nesterov), optax.stateless(orthogonal))
        return optax.partition(
            {"muon": matrices, "adam": optax.scale_by_adam(*self.betas, eps=self.eps)},
            lambda params: described(params, lambda leaf: "muon" if leaf.dense else "adam"),
        )

    def _orthogonal(self, momentum: Float[Array, "*stack rows columns"]) -> Float[Array, "*stack rows columns"]:
        rows, columns = momentum.shape[-2:]
        matrices = on_whole_matrices(lambda x: newton_schulz(x, self.ns_steps, self.eps), momentum)
        return max(rows, columns) ** 0.5 * matrices


def newton_schulz(
    x: Float[Array, "*stack rows columns"], steps: int, eps: float
) -> Float[Array, "*stack rows columns"]:
    """Matrices with the singular vectors of x, and singular values near 1: between 0.7 and 1.2 after five steps, for
    all that were not tiny beside the norm."""
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
