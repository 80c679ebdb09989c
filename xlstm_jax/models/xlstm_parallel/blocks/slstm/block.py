"""The residual block of an sLSTM layer and its feed-forward layer."""

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
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForward, FeedForwardConfig


@dataclass
class sLSTMBlockConfig(SubModelConfig):
    slstm: sLSTMLayerConfig = field(default_factory=sLSTMLayerConfig)
    feedforward: FeedForwardConfig | None = field(default_factory=FeedForwardConfig)
    """The gated feed-forward layer of width 1.3, unless set to None."""
    parallel: ParallelConfig | None = None
    _num_blocks: int | None = field(default=None, repr=False, compare=False)
    _block_idx: int | None = field(default=None, repr=False, compare=False)

    @remembered
    def layer_config(self) -> sLSTMLayerConfig:
        """The layer's config with what follows from the block filled in.

        Raises:
            ConfigError: if the layer's config says otherwise.
        """
        num_blocks = self._num_blocks or self.slstm._num_blocks
        block_idx = self.slstm._block_idx if self._block_idx is None else self._block_idx
        return inherit(self.slstm, self, {"parallel": self.parallel}, _num_blocks=num_blocks, _block_idx=block_idx)

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
        layer = self.slstm
        if stack.mlstm_block is not None:
            # Documents are kept apart by every block or by none.
            mlstm_cell = stack.mlstm_block.mlstm.mlstm_cell
            resets = {"reset_at_document_boundaries": mlstm_cell.reset_at_document_boundaries}
            layer = dataclasses.replace(layer, slstm_cell=inherit(layer.slstm_cell, mlstm_cell, resets))
        names = ("embedding_dim", "dropout", "dtype", "norm_type")
        layer = inherit(layer, stack, {name: getattr(stack, name) for name in names})
        block = dataclasses.replace(self, slstm=layer, _num_blocks=stack.num_blocks, _block_idx=index)
        return inherit(block, stack, {"parallel": stack.parallel})

    def exact(self) -> Self:
        """A copy whose memory and convolution start every document afresh."""
        cell = dataclasses.replace(self.slstm.slstm_cell, reset_at_document_boundaries=True)
        return dataclasses.replace(self, slstm=dataclasses.replace(self.slstm, slstm_cell=cell))

    def check_parts(self) -> None:
        """Raise `ConfigError` if what the parts say does not fit together."""
        self.layer_config().cell_config()
        self.feedforward_config()

    def resolved(self) -> Mapping[str, SubModelConfig | None]:
        """The configs of both layers with what follows from the block filled in."""
        return {"slstm": self.layer_config(), "feedforward": self.feedforward_config()}

    def matmul_flops(self, seq: int) -> float:
        """Floating-point operations per token in matrix products, forward, at sequence length `seq`."""
        feedforward = self.feedforward_config()
        return self.layer_config().matmul_flops(seq) + (0 if feedforward is None else feedforward.matmul_flops())


class sLSTMBlock(nn.Module):
    """x + xlstm(norm(x)), then x + ffn(ffn_norm(x)).

    Parameters: norm, xlstm, ffn_norm, ffn.
    """

    config: sLSTMBlockConfig

    def setup(self) -> None:
        layer, feedforward = self.config.layer_config(), self.config.feedforward_config()

        def norm():
            return NormLayer(eps=layer.norm_eps, dtype=layer.dtype, norm_type=layer.norm_type)

        self.norm, self.xlstm = norm(), sLSTMLayer(layer)
        if feedforward is not None:
            self.ffn_norm, self.ffn = norm(), FeedForward(feedforward)

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int | None = None) -> Any:
        """The state before the first token; it has one size for any text."""
        return sLSTMLayer(self.config.layer_config(), parent=None).init_state(batch_size)

    def __call__(
        self, x: Float[Array, "batch seq dim"], state: Any = None, context: Context = PLAIN
    ) -> tuple[Float[Array, "batch seq dim"], Any]:
        """(y, state)"""
        parallel = self.config.parallel
        x, state = remat("xLSTMResBlock", parallel, sLSTMBlock._mix)(self, x, state, context)
        if self.config.feedforward is not None:
            x = remat("FFNResBlock", parallel, sLSTMBlock._feed)(self, x, context)
        return x, state

    def _mix(self, x: Array, state: Any, context: Context) -> tuple[Array, Any]:
        y, state = self.xlstm(self.norm(x), state, context)
        return x + y, state

    def _feed(self, x: Array, context: Context) -> Array:
        return x + self.ffn(self.ffn_norm(x), train=context.train).astype(x.dtype)
