"""The residual block of an mLSTM layer and, optionally, a feed-forward layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from flax import linen as nn
from jaxtyping import Array, Float

from xlstm_jax.models.configs import ParallelConfig, SubModelConfig, inherit, remat, remembered
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.layers import NormLayer
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig, mLSTMLayerV1
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForward, FeedForwardConfig

LAYERS: dict[str, type[nn.Module]] = {"mlstm": mLSTMLayer, "mlstm_v1": mLSTMLayerV1}
"""The module of each layer type."""


@dataclass
class mLSTMBlockConfig(SubModelConfig):
    mlstm: mLSTMLayerConfig = field(default_factory=mLSTMLayerConfig)
    feedforward: FeedForwardConfig | None = None
    add_post_norm: bool = False
    """Also normalise what each layer returns, before it is added to the residual."""
    parallel: ParallelConfig | None = None
    _num_blocks: int | None = field(default=None, repr=False, compare=False)
    _block_idx: int | None = field(default=None, repr=False, compare=False)

    # What the block's parts take from each other is checked when the stack, or a module, has settled it: until then a
    # default here may still take another value from above.

    @remembered
    def layer_config(self) -> mLSTMLayerConfig:
        """The layer's config with what follows from the block filled in.

        Raises:
            ConfigError: if the layer's config says otherwise.
        """
        num_blocks = self._num_blocks or self.mlstm._num_blocks
        return inherit(self.mlstm, self, {"parallel": self.parallel}, _num_blocks=num_blocks)

    @remembered
    def feedforward_config(self) -> FeedForwardConfig | None:
        """The feed-forward's config with what follows from the layer filled in, or None.

        Raises:
            ConfigError: if the feed-forward's config says otherwise.
        """
        if self.feedforward is None:
            return None
        layer = self.layer_config()
        values: dict[str, Any] = {"embedding_dim": layer.embedding_dim, "parallel": layer.parallel}
        if not self.feedforward.own_dtype_and_dropout:
            values |= {"dtype": layer.dtype, "dropout": layer.dropout}
        num_blocks = self._num_blocks or self.feedforward._num_blocks
        return inherit(self.feedforward, layer, values, _num_blocks=num_blocks)

    def in_stack(self, stack: Any, index: int) -> Self:
        """A copy with what follows from the stack's config and the place in it.

        Raises:
            ConfigError: if this config, or its layer's, says otherwise.
        """
        names = ("embedding_dim", "bias", "dropout", "context_length", "dtype", "norm_type")
        layer = inherit(self.mlstm, stack, {name: getattr(stack, name) for name in names})
        block = dataclasses.replace(self, mlstm=layer, _num_blocks=stack.num_blocks, _block_idx=index)
        return inherit(block, stack, {"parallel": stack.parallel})

    def exact(self) -> Self:
        """A copy whose memory and convolution start every document afresh."""
        cell = dataclasses.replace(self.mlstm.mlstm_cell, reset_at_document_boundaries=True, reset_mode="exact")
        return dataclasses.replace(self, mlstm=dataclasses.replace(self.mlstm, mlstm_cell=cell))

    def check_parts(self) -> None:
        """Raise `ConfigError` if what the parts say does not fit together."""
        self.layer_config().cell_config()
        self.feedforward_config()

    def resolved(self) -> Mapping[str, SubModelConfig | None]:
        """The configs of both layers with what follows from the block filled in."""
        return {"mlstm": self.layer_config(), "feedforward": self.feedforward_config()}

    def matmul_flops(self, seq: int) -> float:
        """Floating-point operations per token in matrix products, forward, at sequence length `seq`."""
        feedforward = self.feedforward_config()
        return self.layer_config().matmul_flops(seq) + (0 if feedforward is None else feedforward.matmul_flops())


class mLSTMBlock(nn.Module):
    """x + post_norm(xlstm(norm(x))), then likewise with ffn; the post norms only with `add_post_norm`.

    Parameters: norm, xlstm, post_norm, ffn_norm, ffn, ffn_post_norm.
    """

    config: mLSTMBlockConfig

    def setup(self) -> None:
        cfg = self.config
        layer, feedforward = cfg.layer_config(), cfg.feedforward_config()

        def norm():
            return NormLayer(eps=layer.mlstm_cell.norm_eps, dtype=layer.dtype, norm_type=layer.norm_type)

        self.norm, self.xlstm = norm(), LAYERS[layer.layer_type](layer)
        if cfg.add_post_norm:
            self.post_norm = norm()
        if feedforward is not None:
            self.ffn_norm, self.ffn = norm(), FeedForward(feedforward)
            if cfg.add_post_norm:
                self.ffn_post_norm = norm()

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int | None = None) -> Any:
        """The state before the first token; it has one size for any text."""
        layer = self.config.layer_config()
        return LAYERS[layer.layer_type](layer, parent=None).init_state(batch_size)

    def __call__(
        self, x: Float[Array, "batch seq dim"], state: Any = None, context: Context = PLAIN
    ) -> tuple[Float[Array, "batch seq dim"], Any]:
        """(y, state)"""
        parallel = self.config.parallel
        x, state = remat("xLSTMResBlock", parallel, mLSTMBlock._mix)(self, x, state, context)
        if self.config.feedforward is not None:
            x = remat("FFNResBlock", parallel, mLSTMBlock._feed)(self, x, context)
        return x, state

    def _mix(self, x: Array, state: Any, context: Context) -> tuple[Array, Any]:
        y, state = self.xlstm(self.norm(x), state, context)
        return x + (self.post_norm(y) if self.config.add_post_norm else y), state

    def _feed(self, x: Array, context: Context) -> Array:
        y = self.ffn(self.ffn_norm(x), train=context.train)
        return x + (self.ffn_post_norm(y) if self.config.add_post_norm else y).astype(x.dtype)
