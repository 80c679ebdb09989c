"""What is said of a model whose numbers are NaN or infinite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


class NotFiniteError(ArithmeticError):
    """A model computes NaN or infinity; the message names the parameters that are to blame."""


def not_finite(params: Any, what: str) -> NotFiniteError:
    """The error for what came out NaN or infinite with these parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    bad = [".".join(key.key for key in path) for path, leaf in leaves if not bool(jnp.isfinite(leaf).all())]
    if not bad:
        cause = "all its parameters are finite, so that it overflows on the way"
    elif len(bad) == 1:
        cause = f"its parameter {bad[0]} holds such values"
    else:
        cause = f"{len(bad)} of its {len(leaves)} parameters hold such values, first {bad[0]}"
    return NotFiniteError(f"{what} are NaN or infinite, so the model says nothing: {cause}")
