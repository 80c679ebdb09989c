"""The residual block of an sLSTM layer and its feed-forward layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from xlstm_jax.models.configs import ParallelConfig, SubModelConfig, inherit
from xlstm_jax.models.shared.remat import call_part
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForward, FeedForwardConfig
from xlstm_jax.models.xlstm_parallel.components.normalization import NormLayer


@dataclass
class sLSTMBlockConfig(SubModelConfig):
    slstm: sLSTMLayerConfig = field(default_factory=sLSTMLayerConfig)
    feedforward: FeedForwardConfig | None = field(default_factory=FeedForwardConfig)
    """The gated feed-forward layer of width 1.3, unless set to None."""
    parallel: ParallelConfig | None = None
    _num_blocks: int | None = field(default=None, repr=False, compare=False)
    _block_idx: int | None = field(default=None, repr=False, compare=False)

    def layer_config(self) -> sLSTMLayerConfig:
        """The layer's config with what follows from the block filled in.

        Raises:
            ConfigError: if the layer's config says otherwise.
        """
        num_blocks = self._num_blocks or self.slstm._num_blocks
        block_idx = self.slstm._block_idx if self._block_idx is None else self._block_idx
        return inherit(self.slstm, self, {"parallel": self.parallel}, _num_blocks=num_blocks, _block_idx=block_idx)

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
            return NormLayer(eps=layer.norm_eps, dtype=layer._dtype, norm_type=layer.norm_type)

        self.norm, self.xlstm = norm(), sLSTMLayer(layer)
        if feedforward is not None:
            self.ffn_norm, self.ffn = norm(), FeedForward(feedforward)

    @nn.nowrap
    def init_state(self, batch_size: int) -> Any:
        """The state before the first token."""
        return sLSTMLayer(self.config.layer_config(), parent=None).init_state(batch_size)

    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        *,
        document_borders: Bool[Array, "batch seq"] | None = None,
        mask: Bool[Array, "batch seq"] | None = None,
        state: Any = None,
        return_state: bool = False,
        train: bool = False,
        block_index: Int[Array, ""] | None = None,
    ) -> Any:
        """y (batch, seq, dim), or (y, state); see `sLSTMCell` for the arguments."""
        parallel = self.config.parallel

        def mix(block, x, document_borders, mask, state, block_index):
            y = block.xlstm(
                block.norm(x),
                document_borders=document_borders,
                mask=mask,
                state=state,
                return_state=return_state,
                train=train,
                block_index=block_index,
            )
            y, state = y if return_state else (y, None)
            return x + y, state

        def feed(block, x):
            return x + block.ffn(block.ffn_norm(x), train=train).astype(x.dtype)

        arrays: tuple[Array | Any, ...] = (x, document_borders, mask, state, block_index)
        x, state = call_part("xLSTMResBlock", parallel, mix, self, *arrays)
        if self.config.feedforward is not None:
            x = call_part("FFNResBlock", parallel, feed, self, x)
        return (x, state) if return_state else x
