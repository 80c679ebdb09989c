"""From hidden states to logits."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xlstm_jax.models.shared.linear import product


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
        return soft_cap_logits(logits.astype(jnp.promote_types(self.dtype, jnp.float32)), self.logits_soft_cap)
