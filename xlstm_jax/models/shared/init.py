"""Initial distributions of parameters."""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from xlstm_jax.config import near_miss

InitDistribution = Literal["normal", "truncated_normal", "uniform"]
InitFnName = Literal["small", "wang", "wang2", "zeros"]


def distribution_of_std(std: float, distribution: InitDistribution) -> Initializer:
    """An initialiser of mean 0 and scale `std`.

    "normal" and "uniform" have the standard deviation `std`. "truncated_normal" cuts N(0, std) at two standard
    deviations without correcting for it, which leaves 0.88 `std`.

    Raises:
        ValueError: for another distribution.
    """
    if distribution == "normal":
        return jax.nn.initializers.normal(std)
    if distribution == "truncated_normal":
        return jax.nn.initializers.truncated_normal(std)
    if distribution == "uniform":
        return uniform_init(-math.sqrt(3.0) * std, math.sqrt(3.0) * std)
    choices = get_args(InitDistribution)
    hint = near_miss(distribution, choices)
    raise ValueError(f"the initial distribution is {distribution!r}, but must be one of {', '.join(choices)}{hint}")


def small_init(dim: int, distribution: InitDistribution = "normal") -> Initializer:
    """Standard deviation sqrt(2 / (5 dim)) (Nguyen and Salazar, 2019)."""
    return distribution_of_std(math.sqrt(2.0 / (5.0 * dim)), distribution)


def wang_init(dim: int, num_blocks: int, distribution: InitDistribution = "normal") -> Initializer:
    """Standard deviation 2 / (num_blocks sqrt(dim)) (Wang and Komatsuzaki, 2021), for what ends a residual branch."""
    return distribution_of_std(2.0 / num_blocks / math.sqrt(dim), distribution)


def create_common_init_fn(
    fn_name: InitFnName, dim: int, num_blocks: int, distribution: InitDistribution = "normal"
) -> Initializer:
    """The initialiser of that name; "wang2" counts two residual branches a block.

    Raises:
        ValueError: for another name.
    """
    if fn_name == "small":
        return small_init(dim, distribution)
    if fn_name == "wang":
        return wang_init(dim, num_blocks, distribution)
    if fn_name == "wang2":
        return wang_init(dim, 2 * num_blocks, distribution)
    if fn_name == "zeros":
        return jax.nn.initializers.zeros
    choices = get_args(InitFnName)
    raise ValueError(
        f"the initialiser is {fn_name!r}, but must be one of {', '.join(choices)}{near_miss(fn_name, choices)}"
    )


def uniform_init(min_val: float, max_val: float) -> Initializer:
    """Uniform on [min_val, max_val)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, min_val, max_val)

    return init


def bias_linspace_init(start: float, end: float) -> Initializer:
    """Evenly spaced from `start` to `end`, both included, for a vector."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        (size,) = shape
        return jnp.linspace(start, end, size, dtype=dtype)

    return init


def gate_bias_init(value: tuple[float, float] | float | None) -> Initializer:
    """Gate biases: evenly spaced over the heads for a pair, constant for a number, N(0, 0.1) for None."""
    if value is None:
        return jax.nn.initializers.normal(0.1)
    if isinstance(value, (tuple, list)):
        return bias_linspace_init(*value)
    return jax.nn.initializers.constant(value)
