"""Published accuracies to stand beside measured ones."""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "SLiCE, arXiv 2505.17761, table 2"
SETTING = (
    "2 layers, 128 or 512 wide, 4 heads, up to 100,001 steps of 256 rows, trained at lengths 3-40, tested at 40-256, "
    "5 runs"
)


class Published(NamedTuple):
    """Raw accuracy at lengths 40 to 256, in per cent, over five runs."""

    mean: float
    deviation: float


_COLUMNS = ("[0:1]", "[1:0]", "[1:1]", "llama")
"""The table's sLSTM, mLSTM, xLSTM[1:1] and Transformer."""
_TABLE = {
    "cycle_nav": ((32.5, 0.4), (52.4, 10.5), (53.5, 5.6), (24.4, 0.5)),
    "even_pairs": ((100.0, 0.0), (99.9, 0.1), (99.0, 1.9), (90.4, 10.4)),
    "mod_arith": ((27.7, 0.6), (28.8, 3.1), (29.3, 1.6), (23.6, 0.7)),
    "parity": ((100.0, 0.0), (53.0, 2.1), (100.0, 0.0), (52.2, 0.4)),
}


def published(task: str, model: str) -> Published | None:
    """The published accuracy of a model's kind, if any."""
    return Published(*_TABLE[task][_COLUMNS.index(model)]) if task in _TABLE and model in _COLUMNS else None
