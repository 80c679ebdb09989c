"""How close is close: the one place that says what error a result may have.

A result is judged per tensor by its relative error in the 2-norm, against the truth or, where terms cancel, against the
sum of the absolute terms (what rounding acts on). Nothing is loosened per test.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import ArrayLike

_TOLERANCE = {
    # Rounding steps one result may accumulate, in units of the dtype's epsilon: products, exponents of sums, divisions.
    "float64": 1e-11,
    "float32": 2e-5,
    "bfloat16": 4e-3,
    "float16": 1e-3,
}


def tolerance(dtype: DTypeLike, length: int = 1) -> float:
    """The relative error allowed for a tensor of `dtype` computed over `length` tokens.

    Rounding errors of a sum of independent terms grow with the square root of their number; from 4,096 tokens on that
    growth is allowed for, below it the constant covers it.

    Raises:
        ValueError: for a dtype without a stated tolerance.
    """
    name = jnp.dtype(dtype).name
    if name not in _TOLERANCE:
        raise ValueError(f"no tolerance is stated for dtype {name}, only for {', '.join(_TOLERANCE)}")
    return _TOLERANCE[name] * max(1.0, (length / 4096) ** 0.5)


def relative_error(value: ArrayLike, truth: ArrayLike, magnitude: ArrayLike | None = None) -> float:
    """‖value − truth‖ / max(‖truth‖, ‖magnitude‖), with the smallest normal number of value's dtype forgiven.

    Args:
        value: the result, of any float dtype; a value that is not finite gives infinity.
        truth: the same in float64.
        magnitude: the sum of the absolute terms that make up the truth, where they cancel.
    """
    tiny = float(jnp.finfo(jnp.asarray(value).dtype).tiny)
    value, truth = np.asarray(value, np.float64), np.asarray(truth, np.float64)
    if value.shape != truth.shape:
        raise ValueError(f"shapes differ: {value.shape} against {truth.shape}")
    if not np.all(np.isfinite(value)):
        return float("inf")
    scale = np.linalg.norm(truth.ravel())
    if magnitude is not None:
        scale = max(scale, np.linalg.norm(np.asarray(magnitude, np.float64).ravel()))
    error = np.linalg.norm((value - truth).ravel()) - tiny * np.sqrt(max(value.size, 1))
    return float(max(error, 0.0) / max(scale, tiny))
