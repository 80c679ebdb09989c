"""`xlstm eval table NAME`: a whole table, over seeds, with what is published beside it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_jax.config import ConfigError
from xlstm_jax.evaluation.suite import RESULT, Record, Records, Suite
from xlstm_jax.evaluation.table.options import TABLES, TableOptions
from xlstm_jax.machine.progress import Progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xlstm_jax.evaluation.table.table import Table


def _module(name: str) -> Any:
    return importlib.import_module(f"xlstm_jax.evaluation.table.tables.{name}")


EXAMPLES = """\
examples:
  xlstm eval table memory
  xlstm eval table formal --models "[0:1],llama" --seeds 0,1 --resume

tables, and how long two cores need for three seeds:
{tables}

The folder gets result.json with every training (its config, seed and values), written after each one, and a picture.
Each table says how much it claims: reproduced; same task, short recipe; or set beside. A training that ended in NaN
stays in the table as a failure.
""".format(tables="\n".join(f"  {name:14}{what}" for name, what in TABLES.items()))


def run(options: TableOptions, progress: Progress, before: Record) -> Records:
    """Make all trainings that are not known; see `Suite.run`."""
    trainings = before.get("trainings", ()) if before.get("table") == options.table else ()
    if trainings and not options.resume:
        raise ConfigError(
            f"{options.folder / RESULT} has {len(trainings)} trainings of this table already: --resume goes on with "
            "them, --out FOLDER begins anew"
        )
    if options.text is not None and not Path(options.text).is_file():
        raise ConfigError(f"--text is {options.text!r}, but there is no such file")
    table = _module(options.table).table(options)
    return _records(table, options, progress, {entry["key"]: entry for entry in trainings})


def _records(table: Table, options: TableOptions, progress: Progress, known: Mapping[str, Record]) -> Records:
    from xlstm_jax.evaluation.table.running import run_jobs
    from xlstm_jax.evaluation.table.table import record_of

    seeds = options.chosen_seeds(table.seeds)
    progress.say(f"{table.title}: {len(table.jobs) * len(seeds)} trainings")
    began = time.monotonic()
    for measured in run_jobs(table.jobs, seeds, known, options.workers(table.workers), progress):
        record = record_of(table, measured, seeds)
        yield {**record, "command": options.command(), "wall_seconds": time.monotonic() - began}


def tabulate(record: Record) -> tuple[RenderableType, str]:
    """Mean and deviation of each cell, with published values below them."""
    from xlstm_jax.evaluation.table.show import meaning, table_of

    return table_of(record), meaning(record)


def draw(record: Record, path: Path) -> None:
    """The table's own picture."""
    _module(record["table"]).draw(record, path)


SUITE = Suite(
    name="table",
    summary="make a whole table: models side by side, over seeds, beside published numbers",
    config=TableOptions,
    run=run,
    table=tabulate,
    picture=draw,
    folder="table-{table}",
    examples=EXAMPLES,
)
