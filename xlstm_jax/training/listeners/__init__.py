"""What every run has: its records, its picture, its report, and what a person sees. A file a listener.

A tracker is one more such file; `train(..., listeners=[...])` takes it.
"""

from __future__ import annotations

from rich.console import Console

from xlstm_jax.distributed.processes import ALONE, Processes
from xlstm_jax.training.events import Listener
from xlstm_jax.training.listeners.finish import Finish
from xlstm_jax.training.listeners.metrics import MetricsFile
from xlstm_jax.training.listeners.plot import LossPlot
from xlstm_jax.training.listeners.terminal import make_terminal


def run_listeners(title: str, log_every: int, console: Console, processes: Processes = ALONE) -> list[Listener]:
    """The listeners of a run, in the order in which they must hear: the terminal is put in order before others end, and
    the picture has what stands in the report. Of several processes the leader has all; the others take their part in
    the scores and samples of the end."""
    if not processes.leader:
        return [Finish(console)]
    return [make_terminal(title, log_every, console), MetricsFile(), Finish(console), LossPlot()]
