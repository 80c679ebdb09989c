"""The mLSTM cell: gates, query/key norms, memory and output norm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from xlstm_jax.config import AtLeast, ConfigError, PositiveFloat
from xlstm_jax.distributed.constrain import lie, on_mesh
from xlstm_jax.distributed.kernels import mlstm
from xlstm_jax.kernels.mlstm import MLSTMState, zero_state
from xlstm_jax.kernels.mlstm.trace import MLSTMTrace, trace
from xlstm_jax.kernels.registry import wide
from xlstm_jax.models.configs import FloatName, ParallelConfig, SubModelConfig
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.init import gate_bias_init
from xlstm_jax.models.shared.layers import MultiHeadNormLayer, NormLayer, soft_cap_logits
from xlstm_jax.models.shared.tracing import DIAGNOSTICS, keep_trace
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.backend import mLSTMBackendNameAndKwargs


@dataclass
class mLSTMCellConfig(SubModelConfig):
    """The gates, norms and memory of an mLSTM."""

    context_length: Annotated[int, AtLeast(-1)] = -1
    embedding_dim: Annotated[int, AtLeast(-1)] = -1
    num_heads: Annotated[int, AtLeast(-1)] = -1
    backend: mLSTMBackendNameAndKwargs = field(default_factory=mLSTMBackendNameAndKwargs)
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the cell's norms and of the norms before and after the layers of its block."""
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Type of the query, key and output norms; follows from the layer."""
    norm_type_v1: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Type of the output norm in the layer type "mlstm_v1", whatever `norm_type` is."""
    dtype: FloatName = "bfloat16"
    gate_dtype: FloatName = "float32"
    """Dtype in which the gate pre-activations are computed."""
    gate_soft_cap: PositiveFloat | None = None
    """Soft cap for the gate pre-activations; None for no cap."""
    gate_linear_headwise: bool = False
    """True: the gate of a head sees the features of that head. False: it sees those of all heads."""
    igate_bias_init_range: tuple[float, float] | float | None = None
    """Input-gate bias: a pair is spaced evenly over the heads, a number is a constant, None is N(0, 0.1)."""
    fgate_bias_init_range: tuple[float, float] | float | None = (3.0, 6.0)
    """Forget-gate bias, likewise."""
    add_qk_norm: bool = False
    """Normalise queries and keys before the memory, with one scale shared by all heads."""
    reset_at_document_boundaries: bool = False
    """Start with an empty memory at every document border; if False, borders are ignored."""
    reset_fgate_value: float = -25.0
    """Forget-gate pre-activation at a border for `reset_mode="gate"`; it is set after the soft cap."""
    parallel: ParallelConfig | None = None
    reset_mode: Literal["gate", "exact"] = "gate"
    """"gate" closes the forget gate at a border and lets convolutions see across it. "exact" lets nothing through."""

    def __post_init__(self) -> None:
        backend: Any = self.backend
        if isinstance(backend, str):
            self.backend = mLSTMBackendNameAndKwargs(backend)  # type: ignore[arg-type]  # checked there
        super().__post_init__()

    @property
    def _gate_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.gate_dtype)


class mLSTMCell(nn.Module):
    """Queries, keys and values in, normalised hidden states out; the memory runs where `config.backend` says.

    Parameters: igate/{kernel, bias}, fgate/{kernel, bias}, out_norm/scale (heads, dim_v) and, with `add_qk_norm`,
    q_norm/scale and k_norm/scale (dim_qk,). Gate kernels are (features, heads), or (heads, 1, features / heads) with
    `gate_linear_headwise`.
    """

    config: mLSTMCellConfig
    out_norm_type: Literal["layernorm", "rmsnorm"] | None = None
    """Type of the output norm; `config.norm_type` if None."""

    def init_state(self, batch_size: int, dim_qk: int, dim_v: int) -> MLSTMState:
        """The empty memory for heads of these sizes."""
        dtype = wide(self.config._dtype, self.config._gate_dtype)
        return zero_state(batch_size, self.config.num_heads, dim_qk, dim_v, dtype)

    @nn.compact
    def __call__(
        self,
        q: Float[Array, "batch seq features_qk"],
        k: Float[Array, "batch seq features_qk"],
        v: Float[Array, "batch seq features_v"],
        gate_input: Array | tuple[Array, ...] | None = None,
        state: MLSTMState | None = None,
        context: Context = PLAIN,
    ) -> tuple[Float[Array, "batch seq features_v"], MLSTMState | None]:
        """Run the cell; the features of a head lie side by side.

        Args:
            q, k, v: queries, keys and values; they are scaled inside.
            gate_input: what the gates are computed from, one array or several; (q, k, v) if None.
            state: the memory before the first token; empty if None.
            context: its document borders act if `config.reset_at_document_boundaries`.

        Returns:
            (h, the memory after the last token).
        """
        cfg = self.config
        _check_heads(cfg, q=q, k=k, v=v)
        inputs = (q, k, v) if gate_input is None else gate_input
        i, f = self._gates(inputs if isinstance(inputs, (tuple, list)) else (inputs,))
        reset = context.document_borders if cfg.reset_at_document_boundaries else None
        if reset is not None and cfg.reset_mode == "gate":
            f = jnp.where(reset[..., None], jnp.asarray(cfg.reset_fgate_value, f.dtype), f)
            reset = None

        q, k, v = (x.reshape(*x.shape[:2], cfg.num_heads, x.shape[-1] // cfg.num_heads) for x in (q, k, v))
        if cfg.add_qk_norm:
            q = NormLayer(eps=cfg.norm_eps, dtype=cfg.dtype, norm_type=cfg.norm_type, name="q_norm")(q)
            k = NormLayer(eps=cfg.norm_eps, dtype=cfg.dtype, norm_type=cfg.norm_type, name="k_norm")(k)
        memory, dtype = cfg.backend.settings(), v.dtype
        if memory.autocast_dtype is not None:
            q, k, v = (x.astype(memory.autocast_dtype) for x in (q, k, v))

        def traced() -> MLSTMTrace:
            start = self.init_state(q.shape[0], q.shape[-1], v.shape[-1]) if state is None else state
            return trace(q, k, v, i, f, start, reset=reset, mask=context.mask, gate=memory.gate)

        if self.is_mutable_collection(DIAGNOSTICS):
            keep_trace(self, traced)
        with jax.named_scope("mlstm"):
            h, after = mlstm(
                *(q, k, v, i, f),
                state=state,
                reset=reset,
                mask=context.mask,
                implementation=memory.implementation,
                chunk_size=memory.chunk_size,
                gate=memory.gate,
                eps=memory.eps,
            )
        norm_type = self.out_norm_type or cfg.norm_type
        norm = MultiHeadNormLayer(eps=cfg.norm_eps, dtype=cfg.dtype, norm_type=norm_type, axis=-2, name="out_norm")
        h = norm(h.astype(dtype)).reshape(*h.shape[:2], h.shape[-2] * h.shape[-1])
        return h, after if context.keep_state else None

    def _gates(self, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        """Pre-activations of input and forget gate, (batch, seq, heads), soft-capped."""
        cfg, heads = self.config, self.config.num_heads
        sizes = tuple(x.shape[-1] for x in inputs)
        if cfg.gate_linear_headwise:
            _check_heads(cfg, gate_input=inputs)
        params = [
            _GateParameters(heads, sizes, cfg.gate_linear_headwise, gate_bias_init(bias), name=name)()
            for name, bias in (("igate", cfg.igate_bias_init_range), ("fgate", cfg.fgate_bias_init_range))
        ]
        if on_mesh():  # one next to the other, the gates could not be parted by heads
            i, f = (self._sums(inputs, kernel, bias) for kernel, bias in params)
            return lie(i, "batch", "sequence", "heads"), lie(f, "batch", "sequence", "heads")
        # One product for both gates and no concatenation of the inputs: these thin products are bound by memory
        # traffic.
        kernels, biases = zip(*params, strict=True)
        both = self._sums(inputs, jnp.concatenate(kernels, axis=-1), jnp.concatenate(biases))
        return both[..., :heads], both[..., heads:]

    def _sums(self, inputs: tuple[Array, ...], kernel: Array, bias: Array) -> Array:
        """The soft-capped sum of the inputs' products with their rows of the kernel."""
        cfg, start = self.config, 0
        kernel, total = kernel.astype(cfg._gate_dtype), bias.astype(cfg._gate_dtype)
        several = len(inputs) > 1  # queries, keys and values, whose features are parted by heads
        kernel = lie(kernel, None, None) if several else kernel
        for x in inputs:
            rows = kernel[start : start + x.shape[-1]]
            rows = lie(rows, "heads", None) if several else rows
            total = total + x.astype(cfg._gate_dtype) @ rows
            start += x.shape[-1]
        return soft_cap_logits(total, cfg.gate_soft_cap)


class _GateParameters(nn.Module):
    """Kernel and bias of one gate; the kernel is returned as (features, heads) in either form."""

    num_heads: int
    sizes: tuple[int, ...]
    headwise: bool
    bias_init: Initializer

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "features heads"], Float[Array, " heads"]]:
        heads, total = self.num_heads, sum(self.sizes)
        shape = (heads, 1, total // heads) if self.headwise else (total, heads)
        kernel = self.param("kernel", nn.initializers.zeros, shape)
        bias = self.param("bias", self.bias_init, (heads,))
        if not self.headwise:
            return kernel, bias
        rows, start = [], 0
        for size in self.sizes:
            # A head's features, input after input, face its slice of the kernel; zeros elsewhere.
            part = kernel[:, 0, start : start + size // heads]
            rows.append((part[:, :, None] * jnp.eye(heads)[:, None, :]).reshape(size, heads))
            start += size // heads
        return jnp.concatenate(rows), bias


def _check_heads(cfg: mLSTMCellConfig, **arrays: Any) -> None:
    if cfg.num_heads < 1:
        raise ConfigError("mLSTMCellConfig.num_heads is not set, but must be to build the cell")
    for name, array in arrays.items():
        for x in array if isinstance(array, (tuple, list)) else (array,):
            if x.ndim != 3:
                raise ValueError(f"{name} has shape {x.shape}, but must be (batch, seq, features)")
            if x.shape[-1] % cfg.num_heads:
                raise ConfigError(
                    f"mLSTMCellConfig.num_heads is {cfg.num_heads}, but must divide the {x.shape[-1]} features "
                    f"of {name}"
                )
