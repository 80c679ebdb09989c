"""The picture of a scored text: loss over the position in a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from xlstm_jax.report.picture import new_picture, save_picture


def plot_positions(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: str | Path,
    *,
    title: str,
    place: str,
    unit: str,
    lines: Mapping[str, float] | None = None,
) -> None:
    """Draw loss over position, a curve for each name, into a PNG.

    Args:
        curves: points (position, loss); positions grow by the power of two.
        place: what the positions are counted in.
        unit: of the loss.
        lines: positions to mark, such as the length of training.
    """
    figure, axes = new_picture()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), linewidth=1.8, marker="o", markersize=4, label=name)
    for name, position in (lines or {}).items():
        axes.axvline(position, color="0.6", linestyle="--", linewidth=1, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda position, _: f"{position:,.0f}")
    axes.set(xlabel=f"position {place} (tokens)", ylabel=unit, title=title)
    save_picture(figure, axes, path)
