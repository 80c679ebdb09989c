"""Checks of what kernels are called with: an error names the argument, what it got and what it takes."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def check_floats(**arrays: Any) -> None:
    """Raise unless every argument is an array of real floats.

    Whole numbers are refused rather than converted: the outputs, which have the dtype of the values, would be rounded
    to whole numbers without a word.

    Raises:
        TypeError: for what is no array.
        ValueError: for an array of another dtype.
    """
    for label, array in arrays.items():
        if not isinstance(array, (jax.Array, np.ndarray)):
            raise TypeError(f"{label} is of type {type(array).__name__}, but must be an array")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{label} has dtype {array.dtype}, but must be of a float dtype")


def check_flags(shape: tuple[int, ...], **arrays: Any) -> None:
    """Raise unless every argument is None or a boolean array of that shape.

    Raises:
        TypeError: for what is no array.
        ValueError: for another shape or dtype.
    """
    for label, array in arrays.items():
        if array is None:
            continue
        if not isinstance(array, (jax.Array, np.ndarray)):
            raise TypeError(f"{label} is of type {type(array).__name__}, but must be None or a boolean array")
        if array.shape != shape or array.dtype != jnp.bool_:
            raise ValueError(
                f"{label} has shape {array.shape} and dtype {array.dtype}, but must be boolean of shape {shape}"
            )


def check_count(label: str, value: Any) -> None:
    """Raise `ValueError` unless the argument is None or a whole number from 1 on."""
    if value is None:
        return
    try:
        fits = not isinstance(value, bool) and operator.index(value) >= 1
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(f"{label} is {value!r}, but must be None or a whole number of at least 1")


def starting_state(kind: Any, state: Any, shapes: tuple[tuple[int, ...], ...], *inputs: Array) -> Any:
    """`state` as the named tuple `kind`, zeros for None, in a dtype as wide as those of state and inputs and float32.

    Raises:
        TypeError: for something else than such a tuple, or for a part that is no array.
        ValueError: for a part of another dtype or shape.
    """
    parts = () if state is None else state
    if state is not None:
        if not isinstance(state, tuple) or len(state) != len(kind._fields):
            raise TypeError(f"state is of type {type(state).__name__}, but must be {kind.__name__}{kind._fields}")
        check_floats(**{f"state.{name}": array for name, array in zip(kind._fields, state, strict=True)})
        for name, array, shape in zip(kind._fields, state, shapes, strict=True):
            if array.shape != shape:
                raise ValueError(f"state.{name} has shape {array.shape}, but these inputs need {shape}")
    # By the standard rules, also for callers who have told JAX to promote nothing by itself.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *(x.dtype for x in (*inputs, *parts)))
    if state is None:
        return kind(*(jnp.zeros(shape, dtype) for shape in shapes))
    return kind(*(x.astype(dtype) for x in state))
