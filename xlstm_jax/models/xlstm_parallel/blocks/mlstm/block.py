"""The residual block of an mLSTM layer and, optionally, a feed-forward layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from xlstm_jax.models.configs import ParallelConfig, inherit, remembered
from xlstm_jax.models.xlstm_parallel.blocks.block import Block, BlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig


@dataclass
class mLSTMBlockConfig(BlockConfig):
    """The mLSTM blocks of a stack: the layer, and a feed-forward layer behind it or none."""

    layer_field: ClassVar[str] = "mlstm"

    mlstm: mLSTMLayerConfig = field(default_factory=mLSTMLayerConfig)
    feedforward: FeedForwardConfig | None = None
    add_post_norm: bool = False
    """Also normalise what each layer returns, before it is added to the residual."""
    parallel: ParallelConfig | None = None
    _num_blocks: int | None = field(default=None, repr=False, compare=False)
    _block_idx: int | None = field(default=None, repr=False, compare=False)

    @remembered
    def layer_config(self) -> mLSTMLayerConfig:
        num_blocks = self._num_blocks or self.mlstm._num_blocks
        return inherit(self.mlstm, self, {"parallel": self.parallel}, _num_blocks=num_blocks)

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


class mLSTMBlock(Block):
    """The block of an mLSTM layer; see `Block`."""

    config: mLSTMBlockConfig
