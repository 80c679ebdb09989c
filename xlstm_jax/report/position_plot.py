"""The picture of a scored text: loss over the position in a document, or in a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xlstm_jax.report.picture import new_picture, save_picture

STYLES = (":", "-.", "--")
"""Of lines that are compared with a curve, in turn."""


class Level(NamedTuple):
    """A loss to compare a curve with."""

    curve: str
    what: str
    start: float
    """The position that it is drawn from."""
    loss: float


def plot_positions(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: str | Path,
    *,
    title: str,
    place: str,
    unit: str,
    lines: Mapping[str, float] | None = None,
    levels: Sequence[Level] = (),
) -> None:
    """Draw loss over position, a curve for each name, into a PNG.

    Args:
        curves: points (position, loss); positions grow by the power of two.
        place: what the positions are counted in.
        unit: of the loss.
        lines: positions to mark, such as the length of training.
        levels: drawn in the colours of their curves.
    """
    figure, axes = new_picture()
    for number, (name, points) in enumerate(curves.items()):
        colour, last = f"C{number}", points[-1][0]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, marker="o", markersize=4, label=name)
        for style, level in zip(STYLES, (level for level in levels if level.curve == name), strict=False):
            reach, loss = (level.start, max(level.start, last)), (level.loss, level.loss)
            axes.plot(reach, loss, color=colour, linestyle=style, linewidth=1.4, label=f"{name}, {level.what}")
    for name, position in (lines or {}).items():
        axes.axvline(position, color="0.6", linestyle="--", linewidth=1, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda position, _: f"{position:,.0f}")
    axes.set(xlabel=f"position {place} (tokens)", ylabel=unit, title=title)
    save_picture(figure, axes, path)
