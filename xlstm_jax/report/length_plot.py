"""The picture of an evaluation by length: accuracy over the length of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from xlstm_jax.report.picture import new_picture, save_picture


def plot_accuracy(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: str | Path,
    *,
    title: str,
    chance: float,
    trained_to: int,
    place: str = "length of the row",
) -> None:
    """Draw accuracy over length, a curve for each name, into a PNG.

    Args:
        curves: points (length, accuracy).
        chance: accuracy of guessing.
        trained_to: the greatest length of training.
        place: what lengths are of.
    """
    figure, axes = new_picture()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), linewidth=1.8, marker="o", markersize=4, label=name)
    axes.axhline(chance, color="0.6", linestyle="--", linewidth=1, label="guessing")
    axes.axvspan(0, trained_to, color="0.93", zorder=0, label="lengths of training")
    axes.set(xlabel=place, ylabel="accuracy", title=title, ylim=(0, 1.04))
    axes.set_xlim(left=0)
    save_picture(figure, axes, path)
