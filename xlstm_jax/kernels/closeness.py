"""How close is close: the one place that says what error a result may have.

A result is judged per tensor by its relative error in the 2-norm, against the truth or, where terms cancel, against the
sum of the absolute terms (what rounding acts on). Nothing is loosened per test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
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


_ROUNDINGS = 16
"""By how many times what one rounding of all its arguments moves a result may be off: some thirty operations in a row,
each rounding as much, add up like the square root of their number, and come to three standard deviations."""


def rounding_bounds(function: Callable[..., Any], *arguments: Any, dtype: DTypeLike, draws: int = 4) -> tuple[Any, Any]:
    """What a function gives in float64, and how far off each of its results may be where it is computed in `dtype`.

    For functions too long for `tolerance` alone, a whole model's gradient say, which may be ill-conditioned: rounding
    the arguments, once, can move it by more than all the rounding inside. So that is measured. The bound is
    ``tolerance(dtype)`` of the result and a fixed number of times (see `_ROUNDINGS`) the root mean square of how far
    the result moves when every number of the arguments is rounded up or down at random by half a unit of `dtype`.

    Args:
        function: of trees of float64 arrays, to a tree of arrays.
        arguments: what it is called with; the caller has enabled float64.
        dtype: of the results that are to be judged.
        draws: how often the arguments are moved.

    Returns:
        The results, and a tree like it of relative errors in the 2-norm, as `relative_error` measures them.
    """
    function = jax.jit(function)
    truth = function(*arguments)
    unit, rng = float(jnp.finfo(dtype).eps) / 2, np.random.default_rng(0)

    def rounded(x: Any) -> Any:
        return x * (1 + unit * rng.choice([-1.0, 1.0], np.shape(x)))

    def bound(*moves: float) -> float:
        return tolerance(dtype) + _ROUNDINGS * float(np.sqrt(np.mean(np.square(moves))))

    moved = [jax.tree.map(relative_error, function(*jax.tree.map(rounded, arguments)), truth) for _ in range(draws)]
    return truth, jax.tree.map(bound, *moved)


_MLSTM_BFLOAT16 = {"h": 4e-3, "dq": 8e-3, "dk": 8e-3, "dv": 8e-3, "di": 1e-2, "df": 1e-2}
_RESULTS = {
    "mlstm": ("h", "C", "n", "m", "dq", "dk", "dv", "di", "df", "dC", "dn", "dm"),
    "slstm": ("output", "y", "c", "n", "m", "dwx", "dr", "db", "dy", "dc", "dn", "dm"),
    "cross_entropy": ("nats", "dfeatures", "dkernel"),
}


def bounds(cell: str, dtype: DTypeLike, length: int = 1) -> dict[str, float]:
    """The relative error allowed for every output of a cell and every gradient (dq is that of q).

    With bfloat16 queries, keys and values the mLSTM's gates and states stay in float32, and so do their bounds, but for
    what is made of products with rounded gradients. The sLSTM rounds its output in every recurrent product, which all
    its results inherit. The head of the cross-entropy is in float32 whatever its features are.

    Args:
        cell: "mlstm", "slstm" or "cross_entropy", for inputs of `dtype` and so many tokens.
    """
    wide = tolerance(jnp.promote_types(dtype, jnp.float32), length)
    narrow = tolerance(dtype, length)
    allowed = dict.fromkeys(_RESULTS[cell], narrow if cell == "slstm" else wide)
    if cell == "mlstm" and jnp.dtype(dtype) == jnp.bfloat16:
        allowed |= _MLSTM_BFLOAT16
    if cell == "cross_entropy":
        allowed["dfeatures"] = narrow
    return allowed


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
