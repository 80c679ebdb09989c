"""A block of the Transformer."""

from __future__ import annotations

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from xlstm_jax.distributed.constrain import residual
from xlstm_jax.models.configs import remat
from xlstm_jax.models.llama.attention import KVCache, SelfAttention, init_cache
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.init import small_init, wang_init
from xlstm_jax.models.shared.layers import Linear, RMSNorm


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202); parameters proj_up_gate, proj_up, proj_down."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch seq dim"], *, train: bool = False) -> Float[Array, "batch seq dim"]:
        cfg, dim = self.config, x.shape[-1]

        def up(name: str) -> Array:
            return Linear(cfg.ffn_width, small_init(dim), cfg.use_bias, cfg.dtype, name=name)(x)

        hidden = jax.nn.silu(up("proj_up_gate")) * up("proj_up")
        out_init = wang_init(dim, 2 * cfg.num_blocks)
        y = Linear(dim, out_init, cfg.use_bias, cfg.dtype, name="proj_down")(hidden)
        return nn.Dropout(cfg.dropout, deterministic=not train)(y)


class TransformerBlock(nn.Module):
    """x + attn(attn_norm(x)), then x + ffn(ffn_norm(x)); parameters attn_norm, attn, ffn_norm, ffn."""

    config: LlamaConfig

    def setup(self) -> None:
        cfg = self.config
        self.attn_norm, self.ffn_norm = (RMSNorm(eps=cfg.norm_eps, dtype=cfg.dtype) for _ in range(2))
        self.attn, self.ffn = SelfAttention(cfg), SwiGLU(cfg)

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int | None = None) -> KVCache:
        """An empty cache with room for `capacity` tokens, `config.context_length` if None."""
        return init_cache(self.config, batch_size, self.config.context_length if capacity is None else capacity)

    def __call__(
        self, x: Float[Array, "batch seq dim"], state: KVCache | None = None, context: Context = PLAIN
    ) -> tuple[Float[Array, "batch seq dim"], KVCache | None]:
        """(y, cache)"""
        parallel = self.config.parallel
        x, state = remat("AttnBlock", parallel, TransformerBlock._mix)(self, x, state, context)
        return remat("FFNBlock", parallel, TransformerBlock._feed)(self, x, context), state

    def _mix(self, x: Array, cache: KVCache | None, context: Context) -> tuple[Array, KVCache | None]:
        y, cache = self.attn(self.attn_norm(x), cache, context)
        return residual(x + y), cache

    def _feed(self, x: Array, context: Context) -> Array:
        return residual(x + self.ffn(self.ffn_norm(x), train=context.train))
