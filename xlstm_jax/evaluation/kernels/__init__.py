"""The kernels judged on the device at hand: every implementation of every cell against float64."""

from xlstm_jax.evaluation.kernels.cell import Case, Cell
from xlstm_jax.evaluation.kernels.report import Finding, Pick, Report, print_report
from xlstm_jax.evaluation.kernels.run import CheckError, all_cells, run_check

__all__ = ["Case", "Cell", "CheckError", "Finding", "Pick", "Report", "all_cells", "print_report", "run_check"]
