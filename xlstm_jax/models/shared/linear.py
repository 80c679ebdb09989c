"""A dense layer with a backward pass that suits the CPU."""

from __future__ import annotations

import functools

import jax
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float


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
    return jax.lax.dot_general(x, kernel.astype(x.dtype), (((x.ndim - 1,), (int(transposed),)), ((), ())))


def _product_fwd(x: Array, kernel: Array, transposed: bool) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, transposed), (x, kernel)


def _product_bwd(transposed: bool, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = jax.lax.dot_general(dy, kernel.astype(dy.dtype), (((dy.ndim - 1,), (int(not transposed),)), ((), ())))
    over_tokens = (((0,), (0,)), ((), ()))
    dkernel = jax.lax.dot_general(
        x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]), over_tokens, preferred_element_type=kernel.dtype
    )
    return dx, dkernel.T if transposed else dkernel


product.defvjp(_product_fwd, _product_bwd)
