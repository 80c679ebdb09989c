"""The layer type "mlstm_v1" of the xLSTM-7B: dense queries, keys, values and output gate straight from the input."""

from __future__ import annotations

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from xlstm_jax.kernels.mlstm import MLSTMState
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.init import create_common_init_fn, small_init
from xlstm_jax.models.shared.linear import Linear
from xlstm_jax.models.shared.remat import remat
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCell
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig


class mLSTMLayerV1(nn.Module):
    """The mLSTM layer of xLSTM-7B (arXiv 2503.13427), which leaves the up-projection to the feed-forward of its block.

    Parameters: q, k, v, o, cell, proj_down. The kernel of the output gate o starts at zero.
    """

    config: mLSTMLayerConfig

    def setup(self) -> None:
        cfg = self.config
        dim = cfg.inner_dim
        init = small_init(dim, cfg.init_distribution)
        out_init = create_common_init_fn(cfg.output_init_fn, dim, cfg._num_blocks, cfg.init_distribution)

        def linear(features, kernel_init):
            return Linear(features, kernel_init, cfg.bias, cfg._dtype)

        self.q, self.k, self.v = linear(cfg.qk_dim, init), linear(cfg.qk_dim, init), linear(cfg.v_dim, init)
        self.o = linear(cfg.v_dim, nn.initializers.zeros)
        self.cell = mLSTMCell(cfg.cell_config(), out_norm_type=cfg.mlstm_cell.norm_type_v1)
        self.proj_down = linear(dim, out_init)
        self.dropout = nn.Dropout(cfg.dropout)

    @nn.nowrap
    def init_state(self, batch_size: int) -> MLSTMState:
        """The state before the first token."""
        cfg = self.config
        cell = mLSTMCell(cfg.cell_config(), parent=None)
        return cell.init_state(batch_size, cfg.qk_dim // cfg.num_heads, cfg.v_dim // cfg.num_heads)

    def __call__(
        self, x: Float[Array, "batch seq dim"], state: MLSTMState | None = None, context: Context = PLAIN
    ) -> tuple[Float[Array, "batch seq dim"], MLSTMState | None]:
        """(y, state)"""
        cell = remat("mLSTMCell", self.config.parallel, mLSTMCell.__call__)
        h, state = cell(self.cell, self.q(x), self.k(x), self.v(x), x, state, context)
        y = self.proj_down(jax.nn.sigmoid(self.o(x)) * h)
        return self.dropout(y, deterministic=not context.train), state
