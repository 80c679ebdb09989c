"""The tables of published results with ours beside them, from the records in `docs/results`.

A record is a JSON object: `table`, `title`, `label` (one of `LABELS`), `protocol`, `environment`, `seeds`, `command`,
`columns` (each `name`, `unit`) and `rows`: each `name`, `cells` (for every column `mean`, `sd`, `values`, or null where
nothing was measured, or `failed` with the reason) and `published` (each `column`, `value`, `source`, `variant`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "results"

LABELS = {
    "reproduced": "the setting of the source, as far as it says",
    "same task, short recipe": "the task of the source, trained for less: the order may be compared, not the numbers",
    "set beside": "measured otherwise than in the source: to be read beside it, not against it",
}


def page(folder: Path = FOLDER) -> str:
    """All tables, in the order of their files' names."""
    tables = [markdown(json.loads(path.read_text()), path.name) for path in sorted(folder.glob("*.json"))]
    return "\n".join(tables) if tables else "No table has been recorded yet.\n"


def markdown(record: dict[str, Any], name: str) -> str:
    """One record as Markdown; every source has a line of its own, so that two that disagree both show.

    Raises:
        ValueError: for a label that is not one of `LABELS`, a row without a cell for every column, or a published value
            of a column that is not there.
    """
    label, columns = record["label"], [column["name"] for column in record["columns"]]
    if label not in LABELS:
        raise ValueError(f"{name}: label is {label!r}, but must be one of {', '.join(map(repr, LABELS))}")
    lines = [f"## {record['title']}", "", f"**{label}**: {LABELS[label]}.", "", record["protocol"], ""]
    heads = [_head(column) for column in record["columns"]]
    lines += [f"| | | {' | '.join(heads)} |", "|" + "---|" * (2 + len(columns))]
    for row in record["rows"]:
        if len(row["cells"]) != len(columns):
            raise ValueError(f"{name}: {row['name']} has {len(row['cells'])} cells for {len(columns)} columns")
        lines.append(_line(f"**{row['name']}**", "here", [_cell(cell) for cell in row["cells"]]))
        for source, values in _by_source(row.get("published", []), columns, f"{name}: {row['name']}").items():
            lines.append(_line("", source, [values.get(column, "") for column in columns]))
    seeds = ", ".join(map(str, record["seeds"]))
    where = ", ".join(f"{key} {value}" for key, value in record["environment"].items() if value is not None)
    lines += [
        "",
        f"Seeds {seeds}; mean ± standard deviation over them. Made by",
        "",
        f"```\n{record['command']}\n```",
        "",
    ]
    return "\n".join([*lines, f"on {where}.", ""])


def _head(column: dict[str, Any]) -> str:
    return f"{column['name']}, {column['unit']}" if column.get("unit") else column["name"]


def _line(*cells: Any) -> str:
    name, who, values = cells
    return f"| {' | '.join([name, who, *values])} |"


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "—"
    if cell.get("failed"):
        return f"failed: {cell['failed']}"
    spread = f" ± {_number(cell['sd'])}" if cell.get("sd") is not None and len(cell.get("values", [])) > 1 else ""
    return f"**{_number(cell['mean'])}**{spread}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _by_source(published: list[dict[str, Any]], columns: list[str], place: str) -> dict[str, dict[str, str]]:
    """The published values of a row, by their source and variant, then by column; a source may say two of one."""
    found: dict[str, dict[str, str]] = {}
    for one in published:
        if one["column"] not in columns:
            raise ValueError(
                f"{place}: a value of {one['column']!r} is published, but columns are {', '.join(columns)}"
            )
        source = f"{one['source']} ({one['variant']})" if one.get("variant") else one["source"]
        values, shown = found.setdefault(source, {}), _number(one["value"])
        values[one["column"]] = f"{values[one['column']]}, {shown}" if one["column"] in values else shown
    return found
