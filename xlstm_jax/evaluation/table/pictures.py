"""The pictures that several tables share, from their records."""

from __future__ import annotations

from pathlib import Path

from xlstm_jax.evaluation.suite import Record
from xlstm_jax.report.table_plot import Band, Value, band_of, plot_bands, plot_bars, plot_panels


def draw_bars(record: Record, path: Path) -> None:
    """A group of bars for each column, a bar for each row."""
    groups: dict[str, dict[str, Value]] = {}
    for number, column in enumerate(record["columns"]):
        groups[column["title"]] = {
            row["title"]: Value(100 * cell["mean"], None if cell["sd"] is None else 100 * cell["sd"])
            for row in record["rows"]
            if (cell := row["cells"][number]) is not None and cell["mean"] is not None
        }
    plot_bars(groups, path, title=record["title"], unit="per cent")


def bands(record: Record, row: str, column: str) -> Band | None:
    """The curves of all seeds of a cell."""
    curves = [
        [tuple(point) for point in entry["curve"]]
        for entry in record["trainings"]
        if entry["chosen"] and entry["row"] == row and column in entry["columns"] and entry["curve"]
    ]
    return band_of(curves) if curves else None


def draw_panels(record: Record, path: Path) -> None:
    """A panel for each row, a curve for each column of models."""
    found: dict[str, dict[str, Band]] = {}
    guessing: dict[str, float] = {}
    for row in record["rows"]:
        curves = {
            column["title"]: band
            for column in record["columns"]
            if (band := bands(record, row["name"], column["name"])) is not None
        }
        found[row["title"]] = curves
        for column, cell in zip(record["columns"], row["cells"], strict=True):
            if column["name"] == "guessing" and cell is not None:
                guessing[row["title"]] = cell["mean"]
    plot_panels(
        found,
        path,
        title=record["title"],
        axes_are=tuple(record["axes"]),
        lines=guessing,
        trained_to=record["marks"].get("trained to"),
    )


def draw_positions(record: Record, path: Path, *, column: str, title: str) -> None:
    """The curves of a column over the logarithm of the position, mean and range of the seeds of each row."""
    found = {row["title"]: bands(record, row["name"], column) for row in record["rows"]}
    plot_bands(
        {name: band for name, band in found.items() if band is not None},
        path,
        title=title,
        axes_are=tuple(record["axes"]),
        lines=record["marks"],
    )
