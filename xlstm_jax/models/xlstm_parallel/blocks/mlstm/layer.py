"""The two types of mLSTM layers, behind one config.

"mlstm" has an up-projection, a causal convolution, block-diagonal q, k and v, and a learnable skip. "mlstm_v1", that of
the xLSTM-7B, has dense queries, keys, values and output gate straight from the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from xlstm_jax.config import AtLeast, ConfigError, DropoutRate, NonNegativeInt, PositiveFloat, PositiveInt
from xlstm_jax.kernels.mlstm import MLSTMState
from xlstm_jax.models.configs import FloatName, ParallelConfig, SubModelConfig, inherit, remat, remembered
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.init import InitDistribution, InitFnName, create_common_init_fn, small_init
from xlstm_jax.models.shared.layers import Linear, check_features
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCell, mLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.components.conv import CausalConv1d, CausalConv1dConfig
from xlstm_jax.models.xlstm_parallel.components.linear_headwise import LinearHeadwiseExpand, LinearHeadwiseExpandConfig
from xlstm_jax.models.xlstm_parallel.utils import UpProjConfigMixin

_CHUNK_OF_FLOPS = 64
"""Chunk length at which the cell's matrix products are counted, whatever the implementation."""


@dataclass
class mLSTMLayerConfig(UpProjConfigMixin):
    """Both layer types; fields marked (mlstm) do nothing in "mlstm_v1", which has no up-projection or convolution."""

    proj_factor: PositiveFloat | None = 2.0
    """(mlstm) Width of the inner layer by that of the model."""
    conv1d_kernel_size: NonNegativeInt = 4
    """(mlstm) Taps of the causal convolution; 0 leaves it out."""
    qkv_proj_blocksize: PositiveInt = 4
    """(mlstm) Input features per block of the block-diagonal projections."""
    num_heads: PositiveInt = 4
    vmap_qk: bool = False
    """(mlstm) Hold the parameters of the query and key projections in one array."""
    init_distribution: InitDistribution = "normal"
    output_init_fn: InitFnName = "wang"
    layer_type: Literal["mlstm", "mlstm_v1"] = "mlstm"
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    qk_dim_factor: PositiveFloat = 1.0
    """Width of queries and keys by that of the inner layer (mlstm) or of the model (mlstm_v1)."""
    v_dim_factor: PositiveFloat = 1.0
    """Width of the values, likewise."""
    embedding_dim: Annotated[int, AtLeast(-1)] = -1
    bias: bool = False
    dropout: DropoutRate = 0.0
    context_length: Annotated[int, AtLeast(-1)] = -1
    dtype: FloatName = "bfloat16"
    parallel: ParallelConfig | None = None
    debug_cell: bool = False
    """(mlstm) Leave the inner layer out and project z straight down."""
    gate_input: Literal["qkv", "x_mlstm", "x_mlstm_conv", "x_mlstm_conv_act"] = "qkv"
    """(mlstm) What the gates see; the layer's input in "mlstm_v1"."""
    _num_blocks: int = field(default=1, repr=False, compare=False)
    _inner_embedding_dim: int | None = field(default=None, repr=False, compare=False)
    mlstm_cell: mLSTMCellConfig = field(default_factory=mLSTMCellConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_proj_up_dim(self.embedding_dim)
        self._inner_embedding_dim = self._proj_up_dim
        if self.embedding_dim > 0:
            self._check_widths()

    @property
    def module(self) -> type[nn.Module]:
        """The layer itself."""
        return mLSTMLayerV1 if self.layer_type == "mlstm_v1" else mLSTMLayer

    @property
    def block_norm_eps(self) -> float:
        """Epsilon of the norms before and after the block's layers."""
        return self.mlstm_cell.norm_eps

    @property
    def inner_dim(self) -> int:
        """Number of features that queries, keys and values are made from.

        Raises:
            ConfigError: if the fields that it follows from are not set.
        """
        needed = ("embedding_dim",) if self.layer_type == "mlstm_v1" else ("embedding_dim", "proj_factor")
        for name in needed:
            if getattr(self, name) in (None, -1, 0):
                raise ConfigError(
                    f"mLSTMLayerConfig.{name} is {getattr(self, name)!r}, but must be set to build the layer"
                )
        return self.embedding_dim if self.layer_type == "mlstm_v1" else self._inner_embedding_dim  # type: ignore[return-value]

    @property
    def qk_dim(self) -> int:
        """Number of query features of all heads together."""
        return int(self.inner_dim * self.qk_dim_factor)

    @property
    def v_dim(self) -> int:
        """Number of value features of all heads together."""
        return int(self.inner_dim * self.v_dim_factor)

    @remembered
    def cell_config(self) -> mLSTMCellConfig:
        """The cell's config with what follows from the layer filled in.

        Raises:
            ConfigError: if the cell's config says otherwise.
        """
        unset = self.embedding_dim <= 0 or (self.layer_type == "mlstm" and self._inner_embedding_dim is None)
        values = {
            "context_length": self.context_length,
            "embedding_dim": -1 if unset else self.inner_dim,
            "num_heads": self.num_heads,
            "dtype": self.dtype,
            "norm_type": self.norm_type,
            "parallel": self.parallel,
        }
        return inherit(self.mlstm_cell, self, values)

    def resolved(self) -> Mapping[str, SubModelConfig | None]:
        """The cell's config with what follows from the layer filled in."""
        return {"mlstm_cell": self.cell_config()}

    def matmul_flops(self, seq: int) -> float:
        """Floating-point operations per token in matrix products, forward, at sequence length `seq`."""
        dim, qk, v, heads = self.embedding_dim, self.qk_dim, self.v_dim, self.num_heads
        if self.layer_type == "mlstm_v1":
            linear = 2 * dim * (2 * qk + 2 * v) + 2 * v * dim
            gates = 2 * 2 * dim * (1 if self.mlstm_cell.gate_linear_headwise else heads)
        else:
            inner, block = self.inner_dim, self.qkv_proj_blocksize
            linear = 2 * dim * (inner + v) + 2 * v * dim
            if self.debug_cell:
                return linear
            scaling = 0 if v == inner else v
            linear += 2 * block * (2 * qk + v + scaling) + 2 * self.conv1d_kernel_size * inner
            gate_dim = 2 * qk + v if self.gate_input == "qkv" else inner
            gates = 2 * 2 * gate_dim * (1 if self.mlstm_cell.gate_linear_headwise else heads)
        chunk = min(_CHUNK_OF_FLOPS, seq)
        cell = 4 * (qk // heads) * (v // heads) * heads + (chunk + 1) * (qk // heads + v // heads) * heads
        return linear + gates + cell

    def _check_widths(self) -> None:
        if self.layer_type == "mlstm" and self._inner_embedding_dim is None:
            return
        for name, width in (("qk_dim_factor", self.qk_dim), ("v_dim_factor", self.v_dim)):
            if width < 1 or width % self.num_heads:
                raise ConfigError(
                    f"mLSTMLayerConfig.{name} {getattr(self, name)} of {self.inner_dim} features gives {width}, which "
                    f"num_heads {self.num_heads} must divide"
                )
        if self.layer_type == "mlstm_v1":
            if self.mlstm_cell.gate_linear_headwise and self.embedding_dim % self.num_heads:
                raise ConfigError(
                    f"mLSTMLayerConfig.num_heads is {self.num_heads}, but must divide embedding_dim "
                    f"{self.embedding_dim} for gate_linear_headwise"
                )
            return
        for name in ("qkv_proj_blocksize", "num_heads"):
            if self.inner_dim % getattr(self, name):
                raise ConfigError(
                    f"mLSTMLayerConfig.{name} is {getattr(self, name)}, but must divide the width {self.inner_dim}"
                )
        blocks = self.inner_dim // self.qkv_proj_blocksize
        for name, width in (("qk_dim_factor", self.qk_dim), ("v_dim_factor", self.v_dim)):
            if width % blocks:
                raise ConfigError(
                    f"mLSTMLayerConfig.{name} {getattr(self, name)} gives {width} features, which {blocks} blocks of "
                    f"qkv_proj_blocksize {self.qkv_proj_blocksize} must divide"
                )


class mLSTMLayerState(NamedTuple):
    """What the layer hands on: the cell's memory and the convolution's last inputs."""

    memory: MLSTMState
    conv: Float[Array, "batch window inner"]


class mLSTMLayer(nn.Module):
    """The mLSTM layer with pre-up-projection (xLSTM paper, figure 11).

    Parameters: proj_up_mlstm, proj_up_z, conv, q, k, v (or qk, v), conv_scaling if the values are wider or narrower
    than the inner layer, learnable_skip, cell, proj_down.
    """

    config: mLSTMLayerConfig

    def setup(self) -> None:
        cfg = self.config
        inner, v_dim, dtype = cfg.inner_dim, cfg.v_dim, cfg.dtype
        init = small_init(cfg.embedding_dim, cfg.init_distribution)
        out_init = create_common_init_fn(cfg.output_init_fn, cfg.embedding_dim, cfg._num_blocks, cfg.init_distribution)

        def linear(features, kernel_init):
            return Linear(features, kernel_init, cfg.bias, dtype)

        def headwise(features, copies=None):
            expand = LinearHeadwiseExpandConfig(
                in_features=inner,
                num_heads=inner // cfg.qkv_proj_blocksize,
                expand_factor_up=features / inner,
                _out_features=features,
                bias=cfg.bias,
                dtype=cfg.dtype,
            )
            return LinearHeadwiseExpand(expand, kernel_init=init, copies=copies)

        self.proj_up_mlstm = linear(inner, init)
        self.proj_up_z = linear(v_dim, init)
        self.proj_down = linear(cfg.embedding_dim, out_init)
        self.dropout = nn.Dropout(cfg.dropout)
        if cfg.debug_cell:
            return
        self.conv = CausalConv1d(
            CausalConv1dConfig(feature_dim=inner, kernel_size=cfg.conv1d_kernel_size, dtype=cfg.dtype)
        )
        if cfg.vmap_qk:
            self.qk = headwise(cfg.qk_dim, copies=2)
        else:
            self.q, self.k = headwise(cfg.qk_dim), headwise(cfg.qk_dim)
        self.v = headwise(v_dim)
        if v_dim != inner:
            self.conv_scaling = headwise(v_dim)
        self.learnable_skip = self.param("learnable_skip", nn.initializers.ones, (v_dim,))
        self.cell = mLSTMCell(cfg.cell_config())

    @nn.nowrap
    def init_state(self, batch_size: int) -> mLSTMLayerState:
        """The state before the first token."""
        cfg = self.config
        cell = mLSTMCell(cfg.cell_config(), parent=None)
        memory = cell.init_state(batch_size, cfg.qk_dim // cfg.num_heads, cfg.v_dim // cfg.num_heads)
        return mLSTMLayerState(
            memory, jnp.zeros((batch_size, max(cfg.conv1d_kernel_size - 1, 0), cfg.inner_dim), cfg.dtype)
        )

    def __call__(
        self, x: Float[Array, "batch seq dim"], state: mLSTMLayerState | None = None, context: Context = PLAIN
    ) -> tuple[Float[Array, "batch seq dim"], mLSTMLayerState | None]:
        """(y, state)"""
        cfg = self.config
        check_features(x, cfg.embedding_dim, "the layer")
        x_mlstm, z = self.proj_up_mlstm(x), self.proj_up_z(x)
        if cfg.debug_cell:
            h = z
            state = self.init_state(x.shape[0]) if state is None else state
        else:
            inner = remat("mLSTMInnerLayer", cfg.parallel, mLSTMLayer._inner)
            h, state = inner(self, x_mlstm, z, state, context)
        return self.dropout(self.proj_down(h), deterministic=not context.train), state

    def _inner(
        self, x_mlstm: Array, z: Array, state: mLSTMLayerState | None, context: Context
    ) -> tuple[Array, mLSTMLayerState | None]:
        cfg = self.config
        memory, window = (None, None) if state is None else state
        exact = cfg.mlstm_cell.reset_at_document_boundaries and cfg.mlstm_cell.reset_mode == "exact"
        x_conv, window = self.conv(x_mlstm, window, context if exact else context.replace(document_borders=None))
        x_conv_act = jax.nn.swish(x_conv)
        q, k = self.qk(x_conv_act) if cfg.vmap_qk else (self.q(x_conv_act), self.k(x_conv_act))
        v = self.v(x_mlstm)
        gate_inputs = {
            "qkv": (q, k, v),
            "x_mlstm": x_mlstm,
            "x_mlstm_conv": x_conv,
            "x_mlstm_conv_act": x_conv_act,
        }
        cell = remat("mLSTMCell", cfg.parallel, mLSTMCell.__call__)
        h, memory = cell(self.cell, q, k, v, gate_inputs[cfg.gate_input], memory, context)
        skip = self.conv_scaling(x_conv_act) if cfg.v_dim != cfg.inner_dim else x_conv_act
        h = (h + self.learnable_skip.astype(h.dtype) * skip) * jax.nn.swish(z)
        return h, None if memory is None or window is None else mLSTMLayerState(memory, window)


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
            return Linear(features, kernel_init, cfg.bias, cfg.dtype)

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
        check_features(x, self.config.embedding_dim, "the layer")
        cell = remat("mLSTMCell", self.config.parallel, mLSTMCell.__call__)
        h, state = cell(self.cell, self.q(x), self.k(x), self.v(x), x, state, context)
        y = self.proj_down(jax.nn.sigmoid(self.o(x)) * h)
        return self.dropout(y, deterministic=not context.train), state
