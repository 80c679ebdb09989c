"""What each memory can do: scalar memories track, matrix memories recall (the thesis of the xLSTM paper)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from xlstm_jax.evaluation.suite import Record
from xlstm_jax.evaluation.synthetic.protocols import Lengths, Protocol, get_protocol
from xlstm_jax.evaluation.synthetic.recipes import MODELS
from xlstm_jax.evaluation.table.of_tasks import ROWS, beyond_training, published_of_task, task_jobs, test_tokens
from xlstm_jax.evaluation.table.options import TableOptions
from xlstm_jax.evaluation.table.pictures import draw_positions
from xlstm_jax.evaluation.table.table import Column, Job, Table
from xlstm_jax.evaluation.table.tables.extrapolation import position_jobs

CONTEXT, TIMES = 64, 64
PARAMETERS, STEPS, BATCH = 150_000, 400, 16

COLUMNS = (
    Column("parity", "parity", "%", "whether the ones in rows of 40 to 256 bits are odd, learnt from 3 to 40"),
    Column("cycle_nav", "cycle", "%", "the place on a cycle of 5 after 40 to 256 moves, learnt from 3 to 40"),
    Column("s3", "S3", "%", "products of permutations of 3 things at positions 33 to 256, learnt from 1 to 32"),
    Column("mqar", "MQAR", "%", "values of 4 keys asked for in rows of 32 tokens, 256 in the vocabulary"),
    Column("copy", "copy", "%", "letters of strings of 21 to 40 repeated, learnt from 5 to 20"),
    Column(
        "length",
        "length x8",
        "bits",
        "bits per byte of Python at positions 256 to 511 of a window, learnt from windows of 64",
        digits=2,
        lower=True,
    ),
)


def table(options: TableOptions) -> Table:
    """A row for each model, a column for each ability."""
    models = options.chosen_models(MODELS)
    quick = get_protocol("quick")

    def shorter(steps: int, train_lengths: Lengths | None = None, test_lengths: Lengths | None = None) -> Protocol:
        return dataclasses.replace(quick, steps=steps, train_lengths=train_lengths, test_lengths=test_lengths)

    recall = dataclasses.replace(shorter(700, (32, 32), (32, 32)), batch_size=64)
    jobs: list[Job] = [
        *task_jobs(shorter(800), "parity", models),
        *task_jobs(shorter(800), "cycle_nav", models),
        *task_jobs(shorter(1200), "s3", models, value=beyond_training),
        *task_jobs(recall, "mqar", models, fields={"random_non_queries": False}),
        *task_jobs(shorter(1000, (12, 42), (44, 82)), "copy", models, value=test_tokens),
        *position_jobs(
            options, models, parameters=PARAMETERS, dim=64, blocks=2, heads=2, steps=STEPS, batch_size=BATCH
        ),
    ]
    return Table(
        name="memory",
        title="What each memory can do",
        rows=tuple(row for row in ROWS if row.name in models),
        columns=COLUMNS,
        jobs=jobs,
        protocol=f"{quick.distance} Bytes of Python's standard library: {STEPS} steps of {BATCH} rows of {CONTEXT} for "
        f"models of {PARAMETERS:,} parameters, with a gated feed-forward layer in every block.",
        differences=quick.differences,
        published=tuple(entry for task in ("parity", "cycle_nav") for entry in published_of_task(task, models, "rows")),
        axes=("position in the window (tokens)", "bits per byte"),
        marks={f"length of training ({CONTEXT})": CONTEXT},
    )


def draw(record: Record, path: Path) -> None:
    """The loss by position."""
    draw_positions(record, path, column="length", title="Bits per byte by position, of the same text at each")
