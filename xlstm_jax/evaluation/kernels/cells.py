"""Every cell that is checked: the mLSTM with each of its gates, the sLSTM, the cross-entropy of a chunked head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from xlstm_jax.evaluation.kernels.cell import Cell
from xlstm_jax.evaluation.kernels.cross_entropy import cross_entropy_cell
from xlstm_jax.evaluation.kernels.mlstm import mlstm_cell
from xlstm_jax.evaluation.kernels.slstm import slstm_cell

_MAKERS: dict[str, Callable[[], Cell]] = {
    "mlstm": partial(mlstm_cell, "exp", True),
    "mlstm-sigmoid": partial(mlstm_cell, "sigmoid", True),
    "mlstm-sigmoid-plain": partial(mlstm_cell, "sigmoid", False),
    "slstm": slstm_cell,
    "cross-entropy": cross_entropy_cell,
}
CELLS = tuple(_MAKERS)


def all_cells() -> dict[str, Cell]:
    """Cells by name, with the implementations that are registered now."""
    return {name: make() for name, make in _MAKERS.items()}
