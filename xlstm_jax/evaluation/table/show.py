"""A table on a terminal of 80 columns, and what its columns mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xlstm_jax.evaluation.suite import Record
from xlstm_jax.evaluation.table.table import LABELS

if TYPE_CHECKING:
    from rich.table import Table


def cell_text(cell: Record | None, column: Record) -> str:
    """Mean and deviation, as `93.1 ± 0.4`; how many trainings failed."""
    if cell is None:
        return "-"
    scale = 100 if column["unit"] == "%" else 1
    digits = column["digits"]
    parts = []
    if cell["mean"] is not None:
        parts.append(f"{scale * cell['mean']:,.{digits}f}")
        if cell["sd"] is not None:
            parts.append(f"±{scale * cell['sd']:,.{digits}f}")
    if cell["failed"]:
        parts.append(f"{len(cell['failed'])} failed")
    return " ".join(parts) or "-"


def letters(record: Record) -> dict[tuple[str, str], str]:
    """A letter for each published source and setting."""
    sources = dict.fromkeys((entry["source"], entry["setting"]) for row in record["rows"] for entry in row["published"])
    return {source: "abcdefghijklmnop"[number] for number, source in enumerate(sources)}


def table_of(record: Record) -> Table:
    """The cells, published values below the measured one."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    # Narrow, so that six columns of numbers find room in a terminal; `xLSTM[1:0]` is whole.
    table.add_column("", min_width=10, max_width=12, overflow="fold")
    for column in record["columns"]:
        table.add_column(column["title"].replace("[", "\\["), justify="right")
    known = letters(record)
    for row in record["rows"]:
        cells = []
        for column, cell in zip(record["columns"], row["cells"], strict=True):
            lines = [f"[b]{cell_text(cell, column)}[/b]"]
            lines += [
                f"{published_text(entry)} {known[entry['source'], entry['setting']]}"
                for entry in row["published"]
                if entry["column"] == column["name"]
            ]
            cells.append("\n".join(lines))
        table.add_row(row["title"].replace("[", "\\["), *cells)
    return table


def published_text(entry: Record) -> str:
    """A published value with its deviation."""
    deviation = "" if entry["deviation"] is None else f" ±{entry['deviation']:.1f}"
    return f"{entry['value']:g}{deviation}"


def meaning(record: Record) -> str:
    """What the table claims, how it was made, what is published elsewhere."""
    several = "" if len(record["seeds"]) < 2 else f", mean ± standard deviation of the seeds {_listed(record['seeds'])}"
    lines = [f"{record['title']}{several}."]
    lines += [f"{column['title']}: {column['what']}." for column in record["columns"] if column["what"]]
    lines.append(f"Label: {record['label']} ({LABELS[record['label']]}).")
    lines.append(record["protocol"])
    failed = sum(entry["error"] is not None for entry in record["trainings"])
    made = f"{len(record['trainings'])} trainings, {failed} of them failed"
    unfinished = "" if record["complete"] else "; more are to be made (--resume)"
    choices = sorted({entry["choice"] for entry in record["trainings"]} - {""})
    rates = "; of several learning rates the best on validation rows is shown" if _swept(record) and choices else ""
    lines.append(f"{made}{unfinished}{rates}.")
    for (source, setting), letter in letters(record).items():
        lines.append(f"Published, {letter}: {source} ({setting}).")
    judged = [entry["agrees"] for row in record["rows"] for entry in row["published"] if entry["agrees"] is not None]
    if judged:
        lines.append(
            f"{sum(judged)} of {len(judged)} published values are within two of their deviations, or two points, of "
            "the mean above."
        )
    return "\n".join((*lines, *record["conclusions"], *record["statements"]))


def _swept(record: Record) -> bool:
    return any(not entry["chosen"] for entry in record["trainings"])


def _listed(values: Any) -> str:
    *some, last = map(str, values)
    return f"{', '.join(some)} and {last}" if some else last
