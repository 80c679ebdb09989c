"""The same model in float64: the truth for its float32 self, and what recorded float32 numbers are compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_jax.kernels.closeness import relative_error, rounding_bounds
from xlstm_jax.models.language_model import build_model


def in_float64(config: Any) -> Any:
    """The config with every dtype in it set to float64."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = in_float64(value)
        elif "dtype" in field.name and isinstance(value, str):
            changes[field.name] = "float64"
    return dataclasses.replace(config, **changes)


def wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, "float64"), tree)


def assert_float32_is_float64_but_for_rounding(config: Any, params: Any, results: Callable[..., Any]) -> Any:
    """`results(model, params)`, a tree, of the float32 model against that of it in float64, which is returned."""
    got = jax.jit(lambda params: results(build_model(config), params))(params)
    with jax.enable_x64(True):
        model = build_model(in_float64(config))
        truth, bounds = rounding_bounds(lambda params: results(model, params), wide(params), dtype="float32")
        errors = jax.tree.map(relative_error, got, truth)
    wrong = jax.tree.map(lambda error, bound: error > bound, errors, bounds)
    assert not any(jax.tree.leaves(wrong)), (errors, bounds)
    return truth
