"""Products of groups: what a memory can keep track of."""

from __future__ import annotations

from pathlib import Path

from xlstm_jax.evaluation.suite import Record
from xlstm_jax.evaluation.synthetic.protocols import get_protocol
from xlstm_jax.evaluation.synthetic.published import STATEMENTS
from xlstm_jax.evaluation.synthetic.recipes import MODELS
from xlstm_jax.evaluation.synthetic.tasks import GROUPS
from xlstm_jax.evaluation.table.of_tasks import beyond_training, columns_of, task_jobs
from xlstm_jax.evaluation.table.options import TableOptions
from xlstm_jax.evaluation.table.pictures import draw_panels
from xlstm_jax.evaluation.table.table import Row, Table


def table(options: TableOptions) -> Table:
    """A row for each group, a column for each model."""
    protocol, models = get_protocol(options.protocol), options.chosen_models(MODELS)
    names = [task.name for task in GROUPS]
    jobs = [
        job for name in names for job in task_jobs(protocol, name, models, models_are="columns", value=beyond_training)
    ]
    return Table(
        name="groups",
        title="Products of groups: accuracy at positions 33 to 256, trained at 1 to 32",
        rows=tuple(Row(name, name.upper().replace("X", " x ")) for name in names),
        columns=columns_of(models),
        jobs=jobs,
        protocol=protocol.distance,
        differences=protocol.differences,
        statements=tuple(f"{name.upper()}: {text}" for name in names for text in STATEMENTS.get(name, ())),
        axes=("position in the row", "accuracy"),
        marks={"trained to": 32},
        fixed={task.name: {"guessing": task.chance} for task in GROUPS},
    )


def draw(record: Record, path: Path) -> None:
    """A panel for each group: accuracy over the position."""
    draw_panels(record, path)
