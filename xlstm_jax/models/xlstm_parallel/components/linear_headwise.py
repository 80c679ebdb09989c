"""A linear map whose matrix is block-diagonal: every head of the input is mapped by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from xlstm_jax.config import ConfigError, PositiveFloat, PositiveInt
from xlstm_jax.distributed.constrain import on_mesh
from xlstm_jax.kernels.registry import wide
from xlstm_jax.models.configs import FloatName, SubModelConfig
from xlstm_jax.models.shared.init import small_init


@dataclass
class LinearHeadwiseExpandConfig(SubModelConfig):
    """A linear map of each head's features by itself."""

    in_features: PositiveInt = 0
    num_heads: PositiveInt = -1
    """Number of blocks of the matrix."""
    expand_factor_up: PositiveFloat = 1
    _out_features: int = field(default=-1, repr=False, compare=False)
    bias: bool = True
    trainable_weight: bool = True
    trainable_bias: bool = True
    dtype: FloatName = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._out_features < 0:
            self._out_features = round(self.expand_factor_up * self.in_features)
        for what, size in (("in_features", self.in_features), ("the number of output features", self._out_features)):
            if size % self.num_heads:
                raise ConfigError(
                    f"LinearHeadwiseExpandConfig.num_heads is {self.num_heads}, but must divide {what}, {size}"
                )


class LinearHeadwiseExpand(nn.Module):
    """Parameters: kernel (heads, out, in), bias (heads * out,); with `copies` = n these and y have a leading axis n."""

    config: LinearHeadwiseExpandConfig
    kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros
    copies: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape features"]) -> Float[Array, "*copies_shape out_features"]:
        cfg = self.config
        in_size, out_size = cfg.in_features // cfg.num_heads, cfg._out_features // cfg.num_heads
        lead = () if self.copies is None else (self.copies,)
        init = self.kernel_init or small_init(in_size)
        kernel = self.param("kernel", init, (*lead, cfg.num_heads, out_size, in_size))
        kernel = kernel if cfg.trainable_weight else jax.lax.stop_gradient(kernel)
        kernel, x = kernel.astype(cfg.dtype), x.astype(cfg.dtype)
        y = block_diagonal(x, kernel) if self.copies is None else jnp.stack([block_diagonal(x, w) for w in kernel])
        if cfg.bias:
            bias = self.param("bias", self.bias_init, (*lead, cfg._out_features))
            bias = bias if cfg.trainable_bias else jax.lax.stop_gradient(bias)
            y = y + bias.astype(cfg.dtype).reshape(*lead, *(1,) * (x.ndim - 1), -1)
        return y


_SMALL_BLOCK = 16


@jax.custom_vjp
def _small_blocks(x: Array, kernel: Array) -> Array:
    """y[..., h, o] = sum_d x[..., h, d] kernel[h, o, d] as multiply-adds: too small to be matrix products."""
    heads, out_size, in_size = kernel.shape
    dtype = wide(x.dtype)
    blocks, kernel = x.reshape(*x.shape[:-1], heads, in_size).astype(dtype), kernel.astype(dtype)
    y = jnp.zeros((), dtype)
    for d in range(in_size):
        y = y + blocks[..., d, None] * kernel[:, :, d]
    return y.reshape(*x.shape[:-1], heads * out_size).astype(x.dtype)


def _small_blocks_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _small_blocks(x, kernel), (x, kernel)


def _small_blocks_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    heads, out_size, in_size = kernel.shape
    dx = _small_blocks(dy, jnp.swapaxes(kernel, 1, 2))
    # The kernel's gradient is a product over all tokens. Several neighbouring blocks at once, of which only the
    # diagonal is kept, waste arithmetic, but make matrices that a matrix product handles well. x comes first for the
    # reason that `shared.layers.product` gives.
    together = math.gcd(heads, max(1, 32 // max(in_size, out_size)))
    groups = heads // together
    # Where rows and tokens are parted they must not be put together.
    lead = x.shape[:-1] if on_mesh() else (-1,)
    over = "nmlkjh"[: len(lead)]
    full = jnp.einsum(
        f"{over}gi,{over}go->gio",
        x.reshape(*lead, groups, together * in_size),
        dy.reshape(*lead, groups, together * out_size),
        preferred_element_type=wide(x.dtype),
    ).reshape(groups, together, in_size, together, out_size)
    diagonal = jnp.einsum("ghiho->ghoi", full)
    return dx, diagonal.reshape(kernel.shape).astype(kernel.dtype)


_small_blocks.defvjp(_small_blocks_fwd, _small_blocks_bwd)


def block_diagonal(
    x: Float[Array, "*shape heads_in"], kernel: Float[Array, "heads out in"]
) -> Float[Array, "*shape heads_out"]:
    """`x` times the block-diagonal matrix with blocks `kernel[h].T`."""
    heads, out_size, in_size = kernel.shape
    if max(out_size, in_size) <= _SMALL_BLOCK:
        return _small_blocks(x, kernel)
    y = jnp.einsum("...hd,hod->...ho", x.reshape(*x.shape[:-1], heads, in_size), kernel)
    return y.reshape(*x.shape[:-1], heads * out_size)
