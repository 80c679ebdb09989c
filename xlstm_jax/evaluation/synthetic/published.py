"""Published results to stand beside measured ones: all values that there are, where papers disagree too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from xlstm_jax.evaluation.synthetic.task import Task


class Source(NamedTuple):
    """Where numbers stand."""

    paper: str
    setting: str
    """Sizes, steps, how often it was trained and what was chosen."""
    scaled: bool
    """Whether its numbers run from 0 for guessing to 1, and not from 0 to 100 per cent."""


_LENGTHS = "trained at lengths 3-40, tested at 40-256"

SOURCES: Mapping[str, Source] = {
    "slice": Source(
        "SLiCE, arXiv 2505.17761, table 2",
        f"2 layers, 128 or 512 wide, whichever was better on the rows of the test, 4 heads, up to 100,001 steps of 256 "
        f"rows, {_LENGTHS}, mean of 5 runs; sLSTM of the package xlstm: convolution, recurrent weights zero at first",
        False,
    ),
    "xlstm-4": Source(
        "xLSTM, arXiv 2405.04517, figure 4, as cited by Grazzi et al., arXiv 2411.12537",
        f"2 blocks, 100,000 steps of 256 rows, the best of 3 learning rates and 2 seeds, {_LENGTHS}; sLSTM without "
        "convolution, recurrent weights not zero at first",
        True,
    ),
    "xlstm-12": Source(
        "xLSTM, arXiv 2405.04517, figure 12",
        f"as figure 4: 2 blocks, 100,000 steps of 256 rows, 3 learning rates and 2 seeds, {_LENGTHS}",
        True,
    ),
    "grazzi": Source(
        "Grazzi et al., arXiv 2411.12537",
        f"the best of 3 runs, {_LENGTHS}; on modular arithmetic they could not reproduce figure 4 of xLSTM",
        True,
    ),
    "grazzi-a": Source("Grazzi et al., arXiv 2411.12537, one version", f"the best of 3 runs, {_LENGTHS}", True),
    "grazzi-b": Source("Grazzi et al., arXiv 2411.12537, another version", f"the best of 3 runs, {_LENGTHS}", True),
}

_COLUMNS = ("[0:1]", "[1:0]", "[1:1]", "llama", "lstm")
"""sLSTM, mLSTM, xLSTM[1:1], Transformer, LSTM. (That of xLSTM's figure 12 stands in xLSTM's blocks: it is not ours.)"""

_Cell = tuple[float] | tuple[float, float] | None
"""A value and, where there is one, its standard deviation."""

_ROWS: tuple[tuple[str, str, tuple[_Cell, ...]], ...] = (
    ("slice", "cycle_nav", ((32.5, 0.4), (52.4, 10.5), (53.5, 5.6), (24.4, 0.5), (100.0, 0.0))),
    ("slice", "even_pairs", ((100.0, 0.0), (99.9, 0.1), (99.0, 1.9), (90.4, 10.4), (100.0, 0.0))),
    ("slice", "mod_arith", ((27.7, 0.6), (28.8, 3.1), (29.3, 1.6), (23.6, 0.7), (99.9, 0.1))),
    ("slice", "parity", ((100.0, 0.0), (53.0, 2.1), (100.0, 0.0), (52.2, 0.4), (100.0, 0.0))),
    ("xlstm-4", "parity", ((1.0,), (0.04,), None, None, None)),
    ("xlstm-4", "mod_arith", ((1.0,), (0.04,), None, None, None)),
    ("xlstm-4", "mod_arith_brackets", ((0.57,), (0.03,), None, None, None)),
    ("grazzi", "parity", ((1.0,), (0.087,), None, (0.022,), None)),
    ("grazzi", "mod_arith", ((0.787,), (0.040,), None, (0.031,), None)),
    ("grazzi-a", "mod_arith_brackets", ((0.178,), (0.114,), None, (0.067,), None)),
    ("grazzi-b", "mod_arith_brackets", ((0.173,), (0.034,), None, (0.025,), None)),
    ("xlstm-12", "odds_first", ((0.09, 0.01), (0.15, 0.03), (0.08,), (0.07,), None)),
    ("xlstm-12", "reverse_string", ((0.14, 0.03), (0.22, 0.02), (0.20, 0.01), (0.06,), None)),
    ("xlstm-12", "stack_manipulation", ((0.13, 0.01), (0.25, 0.03), (0.17,), (0.11,), None)),
    ("xlstm-12", "repetition", ((0.09, 0.01), (0.28,), (0.09,), (0.08,), None)),
    ("xlstm-12", "set", ((0.17, 0.01), (0.17, 0.01), (0.15, 0.03), (0.04,), None)),
)

_MQAR = (
    "xLSTM, arXiv 2405.04517, B.1.2: (64, 4), (128, 8) and (256, 16) are solved at all widths by xLSTM[1:1] and [1:0]; "
    "xLSTM[0:1] is better than both LSTMs, and all three fall short (figures alone)"
)
_NO_SHORT_CUT = "Grazzi et al., arXiv 2411.12537, figure 4: no linear RNN has a row of 30 elements of S5 right"
STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "mqar": (_MQAR, "arXiv 2508.19029: recurrent models learn it in a narrow range of learning rates alone"),
    "a5": (
        "SLiCE, arXiv 2505.17761, 5.1: at every length from 3 to 20 an LSTM and an sLSTM need one layer; an mLSTM "
        "needs more the longer the rows",
    ),
    "s3": ("arXiv 2606.12364: an xLSTM with sLSTM layers is right at every length up to 2048; an mLSTM alone fails",),
    "s5": (_NO_SHORT_CUT,),
    "nearest_neighbour": ("xLSTM, arXiv 2405.04517, figure 2: sLSTM and Transformer far better than the LSTM",),
}
"""What papers say in words, where they have no numbers, by task."""


class Published(NamedTuple):
    """A published accuracy at lengths 40 to 256, in per cent and not scaled."""

    mean: float
    deviation: float | None
    source: str
    """Its key in `SOURCES`."""


def published(task: Task, model: str) -> tuple[Published, ...]:
    """All published accuracies of a model's kind on a task."""
    found = []
    for source, name, cells in _ROWS:
        cell = dict(zip(_COLUMNS, cells, strict=True)).get(model)
        if name != task.name or cell is None:
            continue
        # A scaled value is 0 for guessing; its deviation scales with it.
        of_one = 100 * (1 - task.chance) if SOURCES[source].scaled else 1.0
        at_zero = 100 * task.chance if SOURCES[source].scaled else 0.0
        deviation = round(of_one * cell[1], 2) if len(cell) == 2 else None
        found.append(Published(round(at_zero + of_one * cell[0], 2), deviation, source))
    return tuple(found)
