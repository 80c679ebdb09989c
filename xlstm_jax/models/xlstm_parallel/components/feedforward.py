"""The feed-forward layer of a block, plain or gated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from xlstm_jax.config import AtLeast, ConfigError, DropoutRate, OneOf, PositiveFloat, near_miss
from xlstm_jax.models.configs import FloatName, ParallelConfig
from xlstm_jax.models.shared.init import InitDistribution, InitFnName, create_common_init_fn, small_init
from xlstm_jax.models.shared.layers import Linear
from xlstm_jax.models.xlstm_parallel.utils import UpProjConfigMixin

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": jax.nn.gelu,  # the tanh approximation
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),  # x Φ(x), by the error function
    "relu": jax.nn.relu,
    "relu^2": lambda x: jnp.square(jax.nn.relu(x)),
    "sigmoid": jax.nn.sigmoid,
    "swish": jax.nn.swish,
    "selu": jax.nn.selu,
}


def get_act_fn(name: str) -> Callable[[Array], Array]:
    """The activation function of that name.

    Raises:
        ConfigError: for a name that is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"act_fn is {name!r}, but must be one of {', '.join(ACTIVATIONS)}{near_miss(name, ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


@dataclass
class FeedForwardConfig(UpProjConfigMixin):
    """A feed-forward layer, gated or not."""

    proj_factor: PositiveFloat | None = 1.3
    act_fn: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "gelu"
    embedding_dim: Annotated[int, AtLeast(-1)] = -1
    dropout: DropoutRate = 0.0
    bias: bool = False
    init_distribution: InitDistribution = "normal"
    output_init_fn: InitFnName = "wang"
    ff_type: Literal["ffn_gated", "ffn"] = "ffn_gated"
    dtype: FloatName = "bfloat16"
    parallel: ParallelConfig | None = None
    _num_blocks: int = field(default=1, repr=False, compare=False)
    own_dtype_and_dropout: bool = False
    """False: `dtype` and `dropout` are the model's. True: they are those given here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_proj_up_dim(self.embedding_dim)

    def matmul_flops(self) -> int:
        """Floating-point operations per token in matrix products, forward."""
        return (3 if self.ff_type == "ffn_gated" else 2) * 2 * self.embedding_dim * (self._proj_up_dim or 0)


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) for `ff_type="ffn_gated"`.

    Parameters: proj_up, proj_up_gate (gated only), proj_down.
    """

    config: FeedForwardConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*shape dim"], *, train: bool = False) -> Float[Array, "*shape dim"]:
        cfg, dim = self.config, x.shape[-1]
        width = cfg._proj_up_dim
        if width is None:
            missing = "proj_factor" if cfg.proj_factor is None else "embedding_dim"
            raise ConfigError(
                f"FeedForwardConfig.{missing} is {getattr(cfg, missing)!r}, but must be set to build the layer"
            )

        def up(name: str) -> Array:
            init = small_init(dim, cfg.init_distribution)
            return Linear(width, init, cfg.bias, cfg.dtype, name=name)(x)

        act = get_act_fn(cfg.act_fn)
        hidden = act(up("proj_up_gate")) * up("proj_up") if cfg.ff_type == "ffn_gated" else act(up("proj_up"))
        init = create_common_init_fn(cfg.output_init_fn, dim, cfg._num_blocks, cfg.init_distribution)
        y = Linear(dim, init, cfg.bias, cfg.dtype, name="proj_down")(hidden)
        return nn.Dropout(cfg.dropout, deterministic=not train)(y)
