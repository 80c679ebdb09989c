"""The sLSTM cell: recurrent weights and biases, and the memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from xlstm_jax.config import AtLeast, ConfigError, OneOf, PositiveFloat, PositiveInt
from xlstm_jax.distributed.kernels import slstm
from xlstm_jax.kernels.registry import wide
from xlstm_jax.kernels.slstm import GATES, SLSTMState, implementations, zero_state
from xlstm_jax.kernels.slstm.recurrent import Options
from xlstm_jax.kernels.slstm.trace import trace
from xlstm_jax.models.configs import FloatName, ParallelConfig, SubModelConfig
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.init import uniform_init
from xlstm_jax.models.shared.tracing import DIAGNOSTICS, keep_trace

BiasInit = Literal["powerlaw_blockdependent", "small_init", "zeros", "standard"]
RecurrentInit = Literal["zeros", "standard"]


@dataclass
class sLSTMCellConfig(SubModelConfig):
    """The recurrent weights, gate biases and clipping of an sLSTM."""

    embedding_dim: Annotated[int, AtLeast(-1)] = -1
    num_heads: PositiveInt = 4
    """Blocks of the recurrent weights: a head sees its own last output alone."""
    bias_init: BiasInit = "powerlaw_blockdependent"
    """Forget-gate bias: "powerlaw_blockdependent" falls from 5 to -7 over the features of a head, the later a block
    stands in the stack the slower; "small_init" rises from 3 to 6; other biases are 0. "zeros": all are 0.
    "standard": all are uniform within ± 1 / sqrt(embedding_dim)."""
    recurrent_weight_init: RecurrentInit = "zeros"
    """"standard": uniform within ± 1 / sqrt(embedding_dim)."""
    gradient_recurrent_cut: bool = False
    """Let no gradient flow from a token to the one before through the recurrent weights, which still learn."""
    gradient_recurrent_clipval: PositiveFloat | None = None
    """Clip that gradient, element by element, to ± this."""
    forward_clipval: PositiveFloat | None = None
    """Clip the outputs of the memory, element by element, to ± this."""
    implementation: Annotated[str, OneOf(implementations())] | None = None
    """Form of the kernel: "fused", "recurrent" (slow, for comparison) or None for the best."""
    dtype: FloatName = "bfloat16"
    """Dtype of the inputs and outputs."""
    dtype_r: FloatName | None = None
    """Dtype of the recurrent product; `dtype` if None."""
    dtype_b: FloatName = "float32"
    """Dtype that the biases are rounded to."""
    dtype_g: Literal["float32", "float64"] | None = None
    """Dtype of the gates, at least float32; float32 if None. Gates and states share the wider of their dtypes."""
    dtype_s: Literal["float32", "float64"] | None = None
    """Dtype of the states, likewise."""
    reset_at_document_boundaries: bool = False
    """Start with an empty memory at every document border, exactly; if False, borders are ignored."""
    parallel: ParallelConfig | None = None
    _num_blocks: int = field(default=1, repr=False, compare=False)
    _block_idx: int = field(default=0, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding_dim > 0 and self.embedding_dim % self.num_heads:
            raise ConfigError(
                f"sLSTMCellConfig.num_heads is {self.num_heads}, but must divide embedding_dim {self.embedding_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Features of a head.

        Raises:
            ConfigError: if `embedding_dim` is not set.
        """
        if self.embedding_dim < 1:
            raise ConfigError(
                f"sLSTMCellConfig.embedding_dim is {self.embedding_dim}, but must be set to build the cell"
            )
        return self.embedding_dim // self.num_heads

    @property
    def _state_dtype(self) -> jnp.dtype:
        return wide(self._dtype, self.dtype_g or "float32", self.dtype_s or "float32")


def powerlaw_bias(head_dim: int, place: float | Array) -> Float[Array, " head_dim"]:
    """Forget-gate biases that fall from 5 to -7 over a head's features; `place` runs from 0, the first block, to 1."""
    return 5.0 - 12.0 * (jnp.arange(head_dim) / max(head_dim - 1, 1)) ** (0.3 + 1.3 * place)


def bias_init(config: sLSTMCellConfig, block_index: Int[Array, ""] | None = None) -> Initializer:
    """The initialiser of biases of shape (gates, heads, head_dim)."""
    if config.bias_init == "standard":
        return _standard_init(config)

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        bias = jnp.zeros(shape, dtype)
        if config.bias_init == "zeros":
            return bias
        if config.bias_init == "small_init":
            forget = jnp.linspace(3.0, 6.0, shape[-1])
        else:
            index = config._block_idx if block_index is None else block_index
            forget = powerlaw_bias(shape[-1], index / max(config._num_blocks - 1, 1))
        return bias.at[GATES.index("f")].set(forget.astype(dtype))

    return init


def _standard_init(config: sLSTMCellConfig) -> Initializer:
    bound = 1 / math.sqrt(config.embedding_dim)
    return uniform_init(-bound, bound)


class sLSTMCell(nn.Module):
    """The input's part of the pre-activations in, hidden states out.

    Parameters: recurrent_kernel (gates, heads, out, in) and bias (gates, heads, head_dim), the gates in the order
    i, f, z, o.
    """

    config: sLSTMCellConfig

    def init_state(self, batch_size: int) -> SLSTMState:
        """The empty memory."""
        return zero_state(batch_size, self.config.num_heads, self.config.head_dim, self.config._state_dtype)

    @nn.compact
    def __call__(
        self,
        wx: Float[Array, "batch seq gates heads head_dim"],
        state: SLSTMState | None = None,
        context: Context = PLAIN,
    ) -> tuple[Float[Array, "batch seq heads head_dim"], SLSTMState | None]:
        """Run the cell.

        Args:
            state: the memory before the first token; empty if None.
            context: its document borders act if `config.reset_at_document_boundaries`.

        Returns:
            (y, the memory after the last token).
        """
        cfg = self.config
        dim, heads = cfg.head_dim, cfg.num_heads
        init = nn.initializers.zeros if cfg.recurrent_weight_init == "zeros" else _standard_init(cfg)
        r = self.param("recurrent_kernel", init, (len(GATES), heads, dim, dim))
        b = self.param("bias", bias_init(cfg, context.block_index), (len(GATES), heads, dim)).astype(cfg.dtype_b)
        wx, dtype = wx.astype(cfg._dtype), cfg._state_dtype
        reset, mask = context.document_borders if cfg.reset_at_document_boundaries else None, context.mask
        options: dict[str, Any] = {
            "product_dtype": cfg.dtype_r or cfg.dtype,
            "gradient_recurrent_cut": cfg.gradient_recurrent_cut,
            "gradient_recurrent_clipval": cfg.gradient_recurrent_clipval,
            "forward_clipval": cfg.forward_clipval,
        }
        start = self.init_state(wx.shape[0]) if state is None else SLSTMState(*(x.astype(dtype) for x in state))
        if self.is_mutable_collection(DIAGNOSTICS):
            keep_trace(self, lambda: trace(wx, r, b, start, reset=reset, mask=mask, options=Options(**options)))
        with jax.named_scope("slstm"):
            y, after = slstm(
                *(wx, r, b),
                state=start,
                reset=reset,
                mask=mask,
                implementation=cfg.implementation,
                **options,
            )
        return y, after if context.keep_state else None
