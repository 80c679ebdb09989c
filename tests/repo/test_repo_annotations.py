"""While tests run, shapes and dtypes are what annotations say."""

from __future__ import annotations

import jax.numpy as jnp
import jaxtyping
import pytest

from xlstm_jax.kernels.mlstm import mlstm

GATES = jnp.zeros((1, 3, 2))


def says(seq: int) -> str:
    """What is said of values of so many tokens beside three of everything else."""
    x = jnp.zeros((1, 3, 2, 4))
    try:
        mlstm(x, x, jnp.zeros((1, seq, 2, 4)), GATES, GATES)
    except (ValueError, jaxtyping.TypeCheckError) as error:  # `pytest.raises` is without checks
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_an_array_of_another_shape_than_annotated_is_refused_but_where_an_error_is_expected() -> None:
    pytest.importorskip("beartype")
    assert says(3) == "nothing"
    assert "TypeCheckError" in says(2)
    assert "parameter 'v'" in says(2)
    with pytest.raises(ValueError, match="v"):
        mlstm(*[jnp.zeros((1, 3, 2, 4))] * 2, jnp.zeros((1, 2, 2, 4)), GATES, GATES)
