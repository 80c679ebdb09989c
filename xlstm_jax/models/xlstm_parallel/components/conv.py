"""Causal convolution over time, with the window of last inputs as its state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from xlstm_jax.config import ConfigError, NonNegativeInt, PositiveInt
from xlstm_jax.distributed.constrain import lie, on_mesh
from xlstm_jax.distributed.kernels import convolution
from xlstm_jax.kernels.registry import wide
from xlstm_jax.models.configs import FloatName, SubModelConfig
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.init import uniform_init


@dataclass
class CausalConv1dConfig(SubModelConfig):
    """A convolution that sees a token and those before it."""

    feature_dim: PositiveInt | None = None
    """Number of features; that of the input if None."""
    kernel_size: NonNegativeInt = 4
    """Number of taps; 0 makes the module the identity."""
    causal_conv_bias: bool = True
    channel_mixing: bool = False
    """True: every output sees every input feature. False: each feature is convolved by itself."""
    conv1d_kwargs: dict[str, Any] = field(default_factory=dict)
    """Kept for old configs; must be empty."""
    dtype: FloatName = "bfloat16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.conv1d_kwargs:
            raise ConfigError(
                f"CausalConv1dConfig.conv1d_kwargs is {self.conv1d_kwargs!r}, but there are no further options"
            )


class CausalConv1d(nn.Module):
    """y_t = bias + sum_j kernel_j x_{t - (K-1) + j}; the past of the first token is zero or the given window.

    K shifted multiply-adds: on a CPU some eighty times faster than a grouped `lax.conv`, and fused with what
    surrounds them everywhere. Parameters: kernel (K, 1 or F, F), bias (F,).
    """

    config: CausalConv1dConfig

    def init_state(self, batch_size: int, features: int | None = None) -> Float[Array, "batch window features"]:
        """The window before the first token: zeros."""
        size = self.config.feature_dim if features is None else features
        return jnp.zeros((batch_size, max(self.config.kernel_size - 1, 0), size), self.config._dtype)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq features"],
        state: Float[Array, "batch window features"] | None = None,
        context: Context = PLAIN,
    ) -> tuple[Float[Array, "batch seq features"], Float[Array, "batch window features"] | None]:
        """Convolve `x`.

        Args:
            state: the last K - 1 inputs before `x`; zeros if None.
            context: no tap and no window reaches across its document borders; padding is skipped as if it were not
                there (its outputs are arbitrary, but finite).

        Returns:
            (y, the window after `x`).
        """
        cfg, dtype = self.config, self.config._dtype
        x = x.astype(dtype)
        taps = cfg.kernel_size
        if taps == 0:
            window = self.init_state(x.shape[0], x.shape[-1]) if state is None else state
            return x, window if context.keep_state else None

        features = x.shape[-1]
        if cfg.feature_dim not in (None, features):
            raise ValueError(
                f"the input has {features} features, but CausalConv1dConfig.feature_dim is {cfg.feature_dim}"
            )
        fan_in = taps * (features if cfg.channel_mixing else 1)
        init = uniform_init(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        kernel = self.param("kernel", init, (taps, fan_in // taps, features))
        bias = self.param("bias", init, (features,)) if cfg.causal_conv_bias else None

        document_borders, mask = context.document_borders, context.mask
        if mask is not None:
            # Padding anywhere: convolve the valid tokens, moved together to the left, then put the results back.
            order = jnp.argsort(~mask, axis=1, stable=True)
            x = jnp.take_along_axis(lie(x, "batch", None, "heads"), order[..., None], axis=1)
            if document_borders is not None:
                document_borders = jnp.take_along_axis(document_borders & mask, order, axis=1)

        keeps = context.keep_state or on_mesh()  # there, what follows on another device may need it

        def run(x: Array, window: Array | None, borders: Array | None, kernel: Array) -> tuple[Array, Array | None]:
            segments = None if borders is None else _segments(borders, taps)
            extended = _prepend(x, window, taps)
            y = _shifted_sum(extended, kernel, segments, x.shape[1])
            return y, _last_window(extended, segments, mask, taps) if keeps else None

        past = x, state, document_borders, kernel
        y, after = convolution(run, *past, by_feature=not cfg.channel_mixing) if mask is None else run(*past)
        y = (y if bias is None else y + bias).astype(dtype)
        if mask is not None:
            rank = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
            y = jnp.take_along_axis(y, rank[..., None], axis=1)
        return y, after if context.keep_state else None


def _segments(borders: Bool[Array, "batch seq"], taps: int) -> Int[Array, "batch window_and_seq"]:
    """The number of the document that each entry of window and sequence belongs to; that of the window is 0."""
    return jnp.pad(jnp.cumsum(borders, axis=1), ((0, 0), (taps - 1, 0)))


def _prepend(x: Array, window: Array | None, taps: int) -> Array:
    if window is None:
        return jnp.pad(x, ((0, 0), (taps - 1, 0), (0, 0)))
    return jnp.concatenate([window.astype(x.dtype), x], axis=1)


def _shifted_sum(extended: Array, kernel: Array, segments: Array | None, length: int) -> Array:
    taps, dtype = kernel.shape[0], wide(extended.dtype)
    mixing = kernel.shape[1] != 1
    total = jnp.zeros((), dtype)
    for tap in range(taps):
        shifted = extended[:, tap : tap + length]
        if segments is not None:
            same = segments[:, tap : tap + length] == segments[:, taps - 1 : taps - 1 + length]
            shifted = jnp.where(same[..., None], shifted, 0)
        if mixing:
            term = jnp.matmul(shifted, kernel[tap].astype(extended.dtype), preferred_element_type=dtype)
        else:
            term = shifted.astype(dtype) * kernel[tap, 0]
        total = total + term
    return total


def _last_window(extended: Array, segments: Array | None, mask: Array | None, taps: int) -> Array:
    """The K - 1 inputs before the next token: those at the end of the valid ones, without an earlier document's."""
    size = taps - 1
    if mask is None:
        window = extended[:, extended.shape[1] - size :]
        of_window = None if segments is None else segments[:, extended.shape[1] - size :]
    else:
        index = jnp.sum(mask, axis=1)[:, None] + jnp.arange(size)
        window = jnp.take_along_axis(extended, index[..., None], axis=1)
        of_window = None if segments is None else jnp.take_along_axis(segments, index, axis=1)
    if of_window is not None:
        window = jnp.where((of_window == of_window[:, -1:])[..., None], window, 0)
    return window
