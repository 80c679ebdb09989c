"""Programs that `jax.export` makes for any batch and length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from xlstm_jax.kernels.closeness import relative_error, tolerance
from xlstm_jax.kernels.mlstm import mlstm
from xlstm_jax.kernels.registry import UnsupportedError

pytestmark = pytest.mark.usefixtures("loose_types")  # a length that is not known is no int

BATCH, SEQ = export.symbolic_shape("batch, seq")


def exported(implementation: str | None) -> export.Exported:
    shapes = [jax.ShapeDtypeStruct((BATCH, SEQ, 2, *rest), jnp.float32) for rest in ((4,), (4,), (4,), (), ())]
    return export.export(jax.jit(lambda *x: mlstm(*x, implementation=implementation)))(*shapes)


@pytest.mark.parametrize("implementation", [None, "recurrent", "parallel"])
def test_one_program_serves_every_length(implementation: str | None) -> None:
    program = exported(implementation)
    for batch, seq in ((1, 1), (3, 70)):
        x = np.random.default_rng(seq).normal(size=(batch, seq, 2, 4)).astype(np.float32)
        inputs = (x, x[::-1], x, x[..., 0], x[..., 1])
        truth = mlstm(*inputs, implementation="recurrent")
        assert relative_error(program.call(*inputs), truth) < tolerance(np.float32)


@pytest.mark.parametrize("implementation", ["chunkwise", "batched"])
def test_forms_in_chunks_say_what_takes_any_length(implementation: str) -> None:
    with pytest.raises(UnsupportedError, match="recurrent and parallel take any length"):
        exported(implementation)
