"""The look of the tables of evaluations on texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def titles(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the runs of a record are called: by their folders' names, where these tell them apart."""
    names = [Path(entry["run"]).name for entry in runs]
    return [name if names.count(name) == 1 else entry["run"] for name, entry in zip(names, runs, strict=True)]


def new_table(*titles: str) -> Table:
    """An empty table for a terminal: the first column is words, the others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    return table


def shown(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if value < 1e6 else f"{value:.3g}"
