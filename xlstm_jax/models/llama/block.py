"""A block of the Transformer, and the stack of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from xlstm_jax.models.llama.attention import KVCache, Layout, SelfAttention, init_cache
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.shared.init import small_init, wang_init
from xlstm_jax.models.shared.linear import Linear
from xlstm_jax.models.shared.remat import call_part
from xlstm_jax.models.xlstm_parallel.components.normalization import RMSNorm


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202); parameters proj_up_gate, proj_up, proj_down."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch seq dim"], *, train: bool = False) -> Float[Array, "batch seq dim"]:
        cfg, dim = self.config, x.shape[-1]

        def up(name: str) -> Array:
            return Linear(cfg.ffn_width, small_init(dim), cfg.use_bias, cfg._dtype, name=name)(x)

        hidden = jax.nn.silu(up("proj_up_gate")) * up("proj_up")
        y = Linear(dim, wang_init(dim, 2 * cfg.num_blocks), cfg.use_bias, cfg._dtype, name="proj_down")(hidden)
        return nn.Dropout(cfg.dropout, deterministic=not train)(y)


class TransformerBlock(nn.Module):
    """x + attn(attn_norm(x)), then x + ffn(ffn_norm(x)); parameters attn_norm, attn, ffn_norm, ffn."""

    config: LlamaConfig

    def setup(self) -> None:
        cfg = self.config
        self.attn_norm, self.ffn_norm = (RMSNorm(eps=cfg.norm_eps, dtype=cfg._dtype) for _ in range(2))
        self.attn, self.ffn = SelfAttention(cfg), SwiGLU(cfg)

    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        layout: Layout,
        cache: KVCache | None = None,
        *,
        return_state: bool = False,
        train: bool = False,
    ) -> tuple[Float[Array, "batch seq dim"], KVCache | None]:
        """(y, cache); see `SelfAttention`."""
        parallel = self.config.parallel

        def attention(block: TransformerBlock, x: Array, layout: Layout, cache: KVCache | None) -> Any:
            y, after = block.attn(block.attn_norm(x), layout, cache, return_state=return_state, train=train)
            return x + y, after

        def feedforward(block: TransformerBlock, x: Array) -> Array:
            return x + block.ffn(block.ffn_norm(x), train=train)

        x, cache = call_part("AttnBlock", parallel, attention, self, x, layout, cache)
        return call_part("FFNBlock", parallel, feedforward, self, x), cache


class TransformerBlockStack(nn.Module):
    """The blocks, then the norm post_blocks_norm.

    Parameters: blocks_0, blocks_1, ... or, with `scan_blocks`, blocks, whose arrays have a leading axis over the
    blocks; post_blocks_norm.
    """

    config: LlamaConfig

    def setup(self) -> None:
        cfg = self.config
        self.blocks = (
            TransformerBlock(cfg) if cfg.scan_blocks else [TransformerBlock(cfg) for _ in range(cfg.num_blocks)]
        )
        self.post_blocks_norm = RMSNorm(eps=cfg.norm_eps, dtype=cfg._dtype)

    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        layout: Layout,
        state: Any = None,
        *,
        return_state: bool = False,
        train: bool = False,
    ) -> tuple[Float[Array, "batch seq dim"], Any]:
        """(y, state); the state after the call with `return_state`, else None."""

        def call(stack: TransformerBlockStack, *arrays: Any) -> Any:
            return stack._run(*arrays, return_state=return_state, train=train)

        x, state = call_part("BlockStack", self.config.parallel, call, self, x, layout, state)
        return self.post_blocks_norm(x), state

    def _run(self, x: Array, layout: Layout, state: Any, *, return_state: bool, train: bool) -> Any:
        cfg = self.config

        def call(block: TransformerBlock, x: Array, cache: KVCache | None, layout: Layout) -> Any:
            return block(x, layout, cache, return_state=return_state, train=train)

        if not cfg.scan_blocks:
            states = []
            for i, block in enumerate(self.blocks):
                before = None if state is None else state[i]
                x, after = call_part("TransformerBlock", cfg.parallel, call, block, x, before, layout)
                states.append(after)
            return x, tuple(states) if return_state else None

        def body(block: TransformerBlock, x: Array, cache: KVCache | None, layout: Layout) -> Any:
            return call_part("TransformerBlock", cfg.parallel, call, block, x, cache, layout, prevent_cse=False)

        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=cfg.num_blocks,
        )
        return scan(self.blocks, x, state, layout)  # type: ignore[arg-type]


def init_state(config: LlamaConfig, batch_size: int, capacity: int) -> Any:
    """Empty caches of all blocks: a tuple with one a block, or one with a leading axis over blocks if scanned."""
    caches = tuple(init_cache(config, batch_size, capacity) for _ in range(config.num_blocks))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches) if config.scan_blocks else caches
