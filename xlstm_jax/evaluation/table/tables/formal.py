"""The fifteen formal languages of the xLSTM paper, beside all that is published of them."""

from __future__ import annotations

from pathlib import Path

from xlstm_jax.evaluation.suite import Record
from xlstm_jax.evaluation.synthetic.protocols import get_protocol
from xlstm_jax.evaluation.synthetic.published import STATEMENTS
from xlstm_jax.evaluation.synthetic.recipes import MODELS
from xlstm_jax.evaluation.synthetic.tasks import FORMAL
from xlstm_jax.evaluation.table.of_tasks import columns_of, published_of_task, task_jobs
from xlstm_jax.evaluation.table.options import TableOptions
from xlstm_jax.evaluation.table.pictures import draw_panels
from xlstm_jax.evaluation.table.table import Row, Table


def table(options: TableOptions) -> Table:
    """A row for each language, a column for each model."""
    protocol, models = get_protocol(options.protocol), options.chosen_models(MODELS)
    names = [task.name for task in FORMAL]
    return Table(
        name="formal",
        title="Formal languages: accuracy of targets at lengths 40 to 256, trained at 3 to 40",
        rows=tuple(Row(name, name.replace("_", " ")) for name in names),
        columns=columns_of(models),
        jobs=[job for name in names for job in task_jobs(protocol, name, models, models_are="columns")],
        protocol=protocol.distance,
        differences=protocol.differences,
        published=tuple(entry for name in names for entry in published_of_task(name, models, "columns")),
        statements=tuple(text for name in names for text in STATEMENTS.get(name, ())),
        axes=("length of the row", "accuracy"),
        marks={"trained to": 40},
        fixed={task.name: {"guessing": task.chance} for task in FORMAL},
    )


def draw(record: Record, path: Path) -> None:
    """A panel for each language: accuracy over the length of the rows."""
    draw_panels(record, path)
