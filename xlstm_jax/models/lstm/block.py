"""A layer of LSTM cells."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from xlstm_jax.distributed.constrain import residual
from xlstm_jax.kernels.registry import wide
from xlstm_jax.models.lstm.config import LSTMConfig
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.init import uniform_init

GATES = "ifzo"


class LSTMState(NamedTuple):
    """What a layer remembers."""

    c: Float[Array, "batch dim"]
    """Memory."""
    h: Float[Array, "batch dim"]
    """Last output."""


class LSTMBlock(nn.Module):
    """c' = sigmoid(f) c + sigmoid(i) tanh(z), h' = sigmoid(o) tanh(c'), with i, f, z, o = W x + R h + b.

    Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000). Parameters of lstm, the gates in the
    order i, f, z, o: kernel (gates, in, out), recurrent_kernel (gates, in, out) and bias (gates, out), all uniform
    within ± 1 / sqrt(dim) at first.
    """

    config: LSTMConfig

    def setup(self) -> None:
        self.lstm = LSTMLayer(self.config)

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int | None = None) -> LSTMState:
        """The empty memory."""
        dtype = wide(self.config._dtype)
        return LSTMState(*(jnp.zeros((batch_size, self.config.embedding_dim), dtype) for _ in range(2)))

    def __call__(
        self, x: Float[Array, "batch seq dim"], state: LSTMState | None = None, context: Context = PLAIN
    ) -> tuple[Float[Array, "batch seq dim"], LSTMState | None]:
        """(y, state)"""
        y, after = self.lstm(x, self.init_state(x.shape[0]) if state is None else state, context)
        return residual(y), after if context.keep_state else None


class LSTMLayer(nn.Module):
    """See `LSTMBlock`."""

    config: LSTMConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch seq dim"], state: LSTMState, context: Context
    ) -> tuple[Float[Array, "batch seq dim"], LSTMState]:
        cfg, dtype = self.config, self.config._dtype
        dim, bound = x.shape[-1], 1 / math.sqrt(x.shape[-1])
        init = uniform_init(-bound, bound)
        kernel = self.param("kernel", init, (len(GATES), dim, dim))
        recurrent_kernel = self.param("recurrent_kernel", init, (len(GATES), dim, dim)).astype(dtype)
        bias = self.param("bias", _bias_init(init, cfg.forget_bias), (len(GATES), dim))
        wx = jnp.einsum("bti,gio->tbgo", x.astype(dtype), kernel.astype(dtype))
        borders = context.document_borders if cfg.reset_at_document_boundaries else None
        flags = tuple(None if flag is None else flag.T[..., None] for flag in (borders, context.mask))

        def step(before: LSTMState, token: tuple) -> tuple[LSTMState, Array]:
            wx, border, counts = token
            c, h = before if border is None else (jnp.where(border, 0, value) for value in before)
            rh = jnp.einsum("bi,gio->bgo", h.astype(dtype), recurrent_kernel)
            i, f, z, o = jnp.moveaxis(wx.astype(c.dtype) + rh.astype(c.dtype) + bias.astype(c.dtype), 1, 0)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(z)
            after = LSTMState(c, jax.nn.sigmoid(o) * jnp.tanh(c))
            if counts is not None:
                after = LSTMState(*(jnp.where(counts, new, old) for new, old in zip(after, before, strict=True)))
            return after, after.h.astype(dtype)

        after, y = jax.lax.scan(step, state, (wx, *flags))
        y = nn.Dropout(cfg.dropout, deterministic=not context.train)(jnp.swapaxes(y, 0, 1))
        return y, after


def _bias_init(init: Initializer, forget_bias: float) -> Initializer:
    def biased(key, shape, dtype=jnp.float32, out_sharding=None):
        return init(key, shape, dtype).at[GATES.index("f")].add(forget_bias)

    return biased
