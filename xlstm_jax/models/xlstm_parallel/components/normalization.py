"""RMSNorm and LayerNorm over the last axis, with one scale vector or one a head."""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xlstm_jax.config import near_miss

NormType = Literal["layernorm", "rmsnorm"]


class _Norm(nn.Module):
    """What both norms share: parameters, and statistics in at least float32.

    `head_axis` None: one scale vector of the size of the last axis. Otherwise a scale of shape (size of that axis,
    size of the last axis): every head is normalised by itself and has its own scale.
    """

    weight: bool = True
    bias: bool = False
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    head_axis: int | None = None

    centre: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: Float[Array, "*shape dim"]) -> Float[Array, "*shape dim"]:
        axes = [-1] if self.head_axis is None else [self.head_axis, -1]
        sizes = [x.shape[a] for a in axes]
        shape = [1] * x.ndim
        for axis, size in zip(axes, sizes, strict=True):
            shape[axis] = size
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = x - jnp.mean(x, axis=-1, keepdims=True) if self.centre else x
        factor = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        if self.weight:
            factor = factor * self.param("scale", nn.initializers.ones, sizes).reshape(shape)
        y = x * factor
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, sizes).reshape(shape)
        return y.astype(self.dtype)


class RMSNorm(_Norm):
    """x / sqrt(mean(x²) + eps), times the scale."""


class LayerNorm(_Norm):
    """(x - mean) / sqrt(variance + eps), times the scale; the variance is that of the centred values (two passes)."""

    centre = True


_NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def NormLayer(
    weight: bool = True,
    bias: bool = False,
    eps: float = 1e-5,
    dtype: DTypeLike = jnp.float32,
    norm_type: NormType = "layernorm",
    name: str | None = None,
) -> nn.Module:
    """A norm over the last axis with scale and bias of its size.

    Raises:
        ValueError: for another `norm_type`.
    """
    return _norm_class(norm_type)(weight=weight, bias=bias, eps=eps, dtype=dtype, name=name)


def MultiHeadNormLayer(
    weight: bool = True,
    bias: bool = False,
    eps: float = 1e-5,
    dtype: DTypeLike = jnp.float32,
    axis: int = 1,
    norm_type: NormType = "layernorm",
    name: str | None = None,
) -> nn.Module:
    """A norm over the last axis for every head by itself; heads lie on `axis`, the scale is (heads, dim).

    Raises:
        ValueError: for another `norm_type`.
    """
    return _norm_class(norm_type)(weight=weight, bias=bias, eps=eps, dtype=dtype, head_axis=axis, name=name)


def _norm_class(norm_type: str) -> type[_Norm]:
    if norm_type not in _NORMS:
        hint = near_miss(norm_type, _NORMS)
        raise ValueError(f"norm_type is {norm_type!r}, but must be one of {', '.join(_NORMS)}{hint}")
    return _NORMS[norm_type]
