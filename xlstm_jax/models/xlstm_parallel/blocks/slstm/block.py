"""The residual block of an sLSTM layer and its feed-forward layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from xlstm_jax.models.configs import ParallelConfig, inherit, remembered
from xlstm_jax.models.xlstm_parallel.blocks.block import Block, BlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig


@dataclass
class sLSTMBlockConfig(BlockConfig):
    """The sLSTM blocks of a stack: the layer, and a feed-forward layer behind it."""

    layer_field: ClassVar[str] = "slstm"
    add_post_norm: ClassVar[bool] = False

    slstm: sLSTMLayerConfig = field(default_factory=sLSTMLayerConfig)
    feedforward: FeedForwardConfig | None = field(default_factory=FeedForwardConfig)
    """The gated feed-forward layer of width 1.3, unless set to None."""
    parallel: ParallelConfig | None = None
    _num_blocks: int | None = field(default=None, repr=False, compare=False)
    _block_idx: int | None = field(default=None, repr=False, compare=False)

    @remembered
    def layer_config(self) -> sLSTMLayerConfig:
        num_blocks = self._num_blocks or self.slstm._num_blocks
        block_idx = self.slstm._block_idx if self._block_idx is None else self._block_idx
        return inherit(self.slstm, self, {"parallel": self.parallel}, _num_blocks=num_blocks, _block_idx=block_idx)

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


class sLSTMBlock(Block):
    """The block of an sLSTM layer, without post norms; see `Block`."""

    config: sLSTMBlockConfig
