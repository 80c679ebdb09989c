"""The small layers that all models are made of: embedding, head with its soft cap, dense map, norms."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from xlstm_jax.config import near_miss
from xlstm_jax.distributed.constrain import gradient_dtype, lie, on_mesh, residual
from xlstm_jax.kernels.registry import wide

NormType = Literal["layernorm", "rmsnorm"]


class Linear(nn.Module):
    """y = x kernel + bias, computed in `dtype`; parameters kernel (in, out) and, if `use_bias`, bias (out,)."""

    features: int
    kernel_init: Initializer
    use_bias: bool = False
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*shape in_features"]) -> Float[Array, "*shape out_features"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = product(x.astype(self.dtype), kernel)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "*shape in_features"], kernel: Float[Array, "rows columns"], transposed: bool = False
) -> Array:
    """x kernel, or x kernel^T if `transposed`, in the dtype of x.

    Its kernel gradient is x^T dy, with x as the operand that has to be transposed. JAX's own rule transposes dy, and
    XLA on CPUs then fuses the elementwise work that makes dy into the transposition and runs it across the rows. It
    also leaves the gradient in the kernel's dtype, without a rounding to that of x in between.
    """
    return _plain_product(x, kernel, transposed)


def _plain_product(x: Array, kernel: Array, transposed: bool) -> Array:
    return jax.lax.dot_general(x, kernel.astype(x.dtype), (((x.ndim - 1,), (int(transposed),)), ((), ())))


def _product_fwd(x: Array, kernel: Array, transposed: bool) -> tuple[Array, tuple[Array, Array]]:
    # The plain one, so that what decides on recomputation sees a matrix product.
    return _plain_product(x, kernel, transposed), (x, kernel)


def _product_bwd(transposed: bool, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = jax.lax.dot_general(dy, kernel.astype(dy.dtype), (((dy.ndim - 1,), (int(not transposed),)), ((), ())))
    if not on_mesh():  # where rows and tokens are parted they must not be put together
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    tokens = tuple(range(x.ndim - 1))
    # Where tokens are parted this is the sum that crosses between devices, in the dtype of the product.
    dtype = gradient_dtype(kernel.dtype)
    dkernel = jax.lax.dot_general(x, dy, ((tokens, tokens), ((), ())), preferred_element_type=dtype)
    dkernel = dkernel.astype(kernel.dtype)
    return dx, dkernel.T if transposed else dkernel


product.defvjp(_product_fwd, _product_bwd)


class Embedding(nn.Module):
    """Rows of a table, looked up first and cast then, so that a step of decoding does not read the whole table.

    A token outside the vocabulary, also a negative one, gives NaN: a wrong tokenizer shows at once instead of training
    on another token.
    """

    vocab_size: int
    features: int
    dtype: DTypeLike
    embedding_init: Initializer

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.embedding_init, (self.vocab_size, self.features))

    def __call__(self, tokens: Int[Array, "*shape"]) -> Float[Array, "*shape features"]:
        # Weights may be NumPy's, as they come from a file.
        table = lie(jnp.asarray(self.embedding), "heads", None)
        rows = table.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return residual(rows.astype(self.dtype))


def check_features(x: Any, size: int, owner: str) -> None:
    """Raise unless x is an array (batch, seq, `size`) of real numbers, which `owner` takes.

    Raises:
        TypeError: for what is no array.
        ValueError: for another shape or dtype.
    """
    if not isinstance(x, (jax.Array, np.ndarray)):
        raise TypeError(f"x is of type {type(x).__name__}, but must be an array")
    if x.ndim != 3 or x.shape[-1] != size:
        raise ValueError(f"x has shape {x.shape}, but {owner} takes (batch, seq, {size})")
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise ValueError(f"x has dtype {x.dtype}, but must be of real numbers")


def check_inputs(tokens: Any, vocab_size: int, **flags: Any) -> None:
    """Raise unless tokens are integers (batch, seq) of the vocabulary and the given flags are boolean of that shape.

    Under `jax.jit` and other transformations, where tokens have no values yet, those cannot be checked. What the flag
    `mask` calls padding may be anything.

    Raises:
        TypeError: for what is no array.
        ValueError: for another shape or dtype, or a token outside the vocabulary.
    """
    for name, array in {"tokens": tokens, **flags}.items():
        if (array is not None or name == "tokens") and not isinstance(array, (jax.Array, np.ndarray)):
            raise TypeError(f"{name} is of type {type(array).__name__}, but must be an array")
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens has shape {tokens.shape} and dtype {tokens.dtype}, but must be integers of shape (batch, seq)"
        )
    for name, flag in flags.items():
        if flag is not None and (flag.shape != tokens.shape or flag.dtype != jnp.bool_):
            raise ValueError(
                f"{name} has shape {flag.shape} and dtype {flag.dtype}, but must be boolean of the tokens' shape "
                f"{tokens.shape}"
            )
    if all(_has_values(x) for x in (tokens, flags.get("mask")) if x is not None):
        values = np.asarray(tokens)
        wrong = (values < 0) | (values >= vocab_size)
        if flags.get("mask") is not None:
            wrong &= np.asarray(flags["mask"])
        if wrong.any():
            row, place = np.argwhere(wrong)[0]
            raise ValueError(
                f"tokens[{row}, {place}] is {values[row, place]}, but the vocabulary has {vocab_size} tokens, from 0 on"
            )


def _has_values(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


def soft_cap_logits(logits: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """`cap * tanh(logits / cap)`, which keeps them inside (-cap, cap); unchanged if `cap` is None."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


class LMHead(nn.Module):
    """Logits in float32: one product without bias, computed in `dtype`, then the soft cap.

    With `embedding` given (weight tying), its transpose is the kernel and the module owns no parameter.
    """

    vocab_size: int
    kernel_init: Initializer
    dtype: DTypeLike = jnp.float32
    logits_soft_cap: float | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "*shape dim"], embedding: Float[Array, "vocab dim"] | None = None
    ) -> Float[Array, "*shape vocab"]:
        x = x.astype(self.dtype)
        if embedding is None:
            kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.vocab_size))
            logits = product(x, kernel)
        else:
            logits = product(x, embedding, True)
        return soft_cap_logits(logits.astype(wide(self.dtype)), self.logits_soft_cap)


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
        x = x.astype(wide(x.dtype))
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
