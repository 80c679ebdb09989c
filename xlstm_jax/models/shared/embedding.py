"""From tokens to vectors, and the check of what a language model is called with."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


class Embedding(nn.Module):
    """Rows of a table, looked up first and cast then, so that a step of decoding does not read the whole table.

    A token outside the vocabulary gives NaN: a wrong tokenizer shows at once instead of training on another token.
    """

    vocab_size: int
    features: int
    dtype: DTypeLike
    embedding_init: Initializer

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.embedding_init, (self.vocab_size, self.features))

    def __call__(self, tokens: Int[Array, "*shape"]) -> Float[Array, "*shape features"]:
        return jnp.take(self.embedding, tokens, axis=0, mode="fill").astype(self.dtype)


def check_inputs(tokens: Array, **flags: Array | None) -> None:
    """Raise `ValueError` unless tokens are integers (batch, seq) and the given flags are boolean of that shape."""
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
