"""The tables of published results with ours beside them, from the records in `docs/results`.

A record is the `result.json` of `xlstm eval table NAME`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xlstm_jax.evaluation.table.show import cell_text, letters, published_text
from xlstm_jax.evaluation.table.table import LABELS

FOLDER = Path(__file__).parents[1] / "results"


def page(folder: Path = FOLDER) -> str:
    """All tables, in the order of their files' names."""
    tables = [markdown(json.loads(path.read_text()), path.name) for path in sorted(folder.glob("*.json"))]
    return "\n".join(tables) if tables else "No table has been recorded yet.\n"


def markdown(record: dict[str, Any], name: str) -> str:
    """One record as Markdown; every source has a line of its own, so that two that disagree both show.

    Raises:
        ValueError: for a label that is not one of `LABELS`, or a row without a cell for every column.
    """
    label, columns = record["label"], record["columns"]
    if label not in LABELS:
        raise ValueError(f"{name}: label is {label!r}, but must be one of {', '.join(map(repr, LABELS))}")
    lines = [f"## {record['title']}", "", f"**{label}**: {LABELS[label]}.", "", record["protocol"], ""]
    lines += [f"* {text}" for text in _said(record)]
    lines += ["", f"| | | {' | '.join(_head(column) for column in columns)} |", "|" + "---|" * (2 + len(columns))]
    known = letters(record)
    for row in record["rows"]:
        if len(row["cells"]) != len(columns):
            raise ValueError(f"{name}: {row['name']} has {len(row['cells'])} cells for {len(columns)} columns")
        cells = [cell_text(cell, column) for cell, column in zip(row["cells"], columns, strict=True)]
        lines.append(_line(row["title"], "here", cells))
        for letter, values in _by_letter(row["published"], known).items():
            lines.append(_line("", letter, [values.get(column["name"], "") for column in columns]))
    lines += ["", *(f"* {letter}: {source} ({setting})." for (source, setting), letter in known.items())]
    for entry in record["trainings"]:
        if entry["error"] is not None:
            what = f"{entry['row']}, {', '.join(entry['columns'])}, seed {entry['seed']}"
            lines.append(f"* Failed: {what}: {entry['error']}")
    seeds = ", ".join(map(str, record["seeds"]))
    unfinished = "" if record["complete"] else " Not all trainings of this table have been made."
    lines += ["", f"Mean ± standard deviation over the seeds {seeds}.{unfinished} Made by"]
    return "\n".join([*lines, "", f"```\n{record['command']}\n```", "", f"on {_where(record)}.", ""])


def _said(record: dict[str, Any]) -> list[str]:
    """What its columns are, what papers say without numbers, and what follows."""
    columns = [f"{column['title']}: {column['what']}." for column in record["columns"] if column["what"]]
    return [*columns, *record["statements"], *record["conclusions"]]


def _head(column: dict[str, Any]) -> str:
    return f"{column['title']}, {column['unit']}" if column["unit"] else column["title"]


def _line(name: str, who: str, values: list[str]) -> str:
    return f"| {' | '.join([name, who, *values])} |"


def _by_letter(published: list[dict[str, Any]], known: dict[tuple[str, str], str]) -> dict[str, dict[str, str]]:
    """The published values of a row, by the letter of their source, then by column; a source may say two of one."""
    found: dict[str, dict[str, str]] = {}
    for one in published:
        values = found.setdefault(known[one["source"], one["setting"]], {})
        both = [values[one["column"]]] if one["column"] in values else []
        values[one["column"]] = ", ".join([*both, published_text(one)])
    return found


def _where(record: dict[str, Any]) -> str:
    known = record["environment"]
    return f"{known['cores']} cores of {known['processor']}, {known['device_kind']}, with JAX {known['jax']}"
