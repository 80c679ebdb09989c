"""The sLSTM layer: causal convolution, head-wise gate maps, memory, norm of every head (xLSTM paper, figure 10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from xlstm_jax.config import AtLeast, ConfigError, DropoutRate, NonNegativeInt, PositiveFloat, PositiveInt
from xlstm_jax.kernels.slstm import GATES, SLSTMState
from xlstm_jax.models.configs import FloatName, ParallelConfig, SubModelConfig, inherit, remat, remembered
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.init import InitDistribution, small_init
from xlstm_jax.models.shared.layers import MultiHeadNormLayer, check_features
from xlstm_jax.models.xlstm_parallel.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.components.conv import CausalConv1d, CausalConv1dConfig
from xlstm_jax.models.xlstm_parallel.components.linear_headwise import LinearHeadwiseExpand, LinearHeadwiseExpandConfig


@dataclass
class sLSTMLayerConfig(SubModelConfig):
    """The sLSTM layer: its convolution, heads and cell."""

    embedding_dim: Annotated[int, AtLeast(-1)] = -1
    num_heads: PositiveInt = 4
    """Heads of the memory, and blocks of the block-diagonal gate maps."""
    conv1d_kernel_size: NonNegativeInt = 4
    """Taps of the causal convolution that input and forget gate see the input through; 0 leaves it out."""
    group_norm_weight: bool = True
    """Whether the norm of the heads has a scale."""
    dropout: DropoutRate = 0.0
    """Rate of the dropout before the norm of the heads, on in training only."""
    init_distribution: InitDistribution = "normal"
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Type of the norms before the block's layers; that of the heads subtracts the mean in any case."""
    norm_eps: PositiveFloat = 1e-5
    """Epsilon of the norm of the heads and of those before the block's layers."""
    dtype: FloatName = "bfloat16"
    dtype_w: FloatName | None = None
    """Dtype of the gate maps; `dtype` if None."""
    parallel: ParallelConfig | None = None
    slstm_cell: sLSTMCellConfig = field(default_factory=sLSTMCellConfig)
    _num_blocks: int = field(default=1, repr=False, compare=False)
    _block_idx: int = field(default=0, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding_dim > 0 and self.embedding_dim % self.num_heads:
            raise ConfigError(
                f"sLSTMLayerConfig.num_heads is {self.num_heads}, but must divide embedding_dim {self.embedding_dim}"
            )

    @property
    def module(self) -> type[nn.Module]:
        """The layer itself."""
        return sLSTMLayer

    @property
    def block_norm_eps(self) -> float:
        """Epsilon of the norms before the block's layers."""
        return self.norm_eps

    @remembered
    def cell_config(self) -> sLSTMCellConfig:
        """The cell's config with what follows from the layer filled in.

        Raises:
            ConfigError: if the cell's config says otherwise.
        """
        values = {name: getattr(self, name) for name in ("embedding_dim", "num_heads", "dtype", "parallel")}
        return inherit(self.slstm_cell, self, values, _num_blocks=self._num_blocks, _block_idx=self._block_idx)

    def resolved(self) -> Mapping[str, SubModelConfig | None]:
        """The cell's config with what follows from the layer filled in."""
        return {"slstm_cell": self.cell_config()}

    def matmul_flops(self, seq: int) -> float:
        """Floating-point operations per token in matrix products, forward; the same at every sequence length."""
        dim = self.embedding_dim
        maps = 2 * len(GATES) * dim * (dim // self.num_heads)
        return 2 * maps + 2 * self.conv1d_kernel_size * dim


class sLSTMLayerState(NamedTuple):
    """What the layer hands on: the cell's memory and the convolution's last inputs."""

    memory: SLSTMState
    conv: Float[Array, "batch window dim"]


class sLSTMLayer(nn.Module):
    """Input and forget gate see the convolved input, cell input and output gate the input itself.

    Parameters: conv, one head-wise map a gate (i, f, z, o: named for what it drives), cell, and group_norm/scale
    (heads, head_dim) unless `config.group_norm_weight` is False.
    """

    config: sLSTMLayerConfig

    def setup(self) -> None:
        cfg = self.config
        cell = cfg.cell_config()
        expand = LinearHeadwiseExpandConfig(
            in_features=cell.head_dim * cell.num_heads,
            num_heads=cfg.num_heads,
            bias=False,
            dtype=cfg.dtype_w or cfg.dtype,
        )
        init = small_init(cfg.embedding_dim, cfg.init_distribution)
        self.i, self.f, self.z, self.o = (LinearHeadwiseExpand(expand, kernel_init=init) for _ in GATES)
        self.conv = CausalConv1d(_conv_config(cfg))
        self.cell = sLSTMCell(cell)
        self.dropout = nn.Dropout(cfg.dropout)
        self.group_norm = MultiHeadNormLayer(
            weight=cfg.group_norm_weight, eps=cfg.norm_eps, dtype=cfg._dtype, axis=-2, norm_type="layernorm"
        )

    @nn.nowrap
    def init_state(self, batch_size: int) -> sLSTMLayerState:
        """The state before the first token."""
        cell = sLSTMCell(self.config.cell_config(), parent=None)
        conv = CausalConv1d(_conv_config(self.config), parent=None)
        return sLSTMLayerState(cell.init_state(batch_size), conv.init_state(batch_size))

    def __call__(
        self, x: Float[Array, "batch seq dim"], state: sLSTMLayerState | None = None, context: Context = PLAIN
    ) -> tuple[Float[Array, "batch seq dim"], sLSTMLayerState | None]:
        """(y, state)"""
        cfg = self.config
        check_features(x, cfg.embedding_dim, "the layer")
        memory, window = (None, None) if state is None else state
        exact = cfg.slstm_cell.reset_at_document_boundaries
        x_conv, window = self.conv(x, window, context if exact else context.replace(document_borders=None))
        if cfg.conv1d_kernel_size:
            x_conv = jax.nn.swish(x_conv)

        wx = jnp.stack([self.i(x_conv), self.f(x_conv), self.z(x), self.o(x)], axis=2)
        wx = wx.reshape(*wx.shape[:3], cfg.num_heads, x.shape[-1] // cfg.num_heads)
        y, memory = remat("sLSTMCell", cfg.parallel, sLSTMCell.__call__)(self.cell, wx, memory, context)
        y = self.group_norm(self.dropout(y, deterministic=not context.train)).reshape(x.shape)
        return y, None if memory is None or window is None else sLSTMLayerState(memory, window)


def _conv_config(config: sLSTMLayerConfig) -> CausalConv1dConfig:
    return CausalConv1dConfig(
        feature_dim=config.cell_config().embedding_dim, kernel_size=config.conv1d_kernel_size, dtype=config.dtype
    )
