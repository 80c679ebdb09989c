"""What stands at the end of a run: the model beside the baselines, on every held-out document."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import Console
from rich.progress import track

from xlstm_jax.data.store.heldout import HeldoutBatch
from xlstm_jax.files import write_atomic
from xlstm_jax.report.table import Comparison, compare
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.scoring.heldout import HeldOut
from xlstm_jax.training.setup import Setup

REPORT_NAME = "report.json"


def has_report(run: RunFolder, step: int) -> bool:
    """Whether the run was compared with the baselines after so many steps."""
    try:
        return json.loads((run.path / REPORT_NAME).read_bytes())["step"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return False


def final_comparison(setup: Setup, console: Console) -> Comparison | None:
    """Score the trained model and the baselines on the whole held-out split, and write report.json into the run.

    Returns:
        The comparison, or None where the store has no held-out documents.
    """
    held_out = HeldOut(
        setup.scorer,
        setup.store.split("validation"),
        batch_size=setup.experiment.training.batch_size,
        seq_len=setup.experiment.seq_len,
    )
    if not held_out.num_documents:
        return None

    def progress(batches: Iterator[HeldoutBatch], count: int) -> Iterator[HeldoutBatch]:
        return iter(
            track(batches, "held-out files", total=count, console=console, transient=True)
            if console.is_terminal
            else batches
        )

    score = held_out(setup.state.params, progress)
    comparison = compare(score.bits_per_byte, setup.store)
    report = {"step": setup.step, "bits_per_byte": comparison.to_dict(), **score.to_dict()}
    write_atomic(setup.run.path / REPORT_NAME, json.dumps(report, indent=2) + "\n")
    return comparison
