"""The picture of tasks: what each run reached in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from xlstm_jax.report.picture import new_picture, save_picture


def plot_tasks(
    tasks: Sequence[str],
    points: Mapping[str, Sequence[tuple[float | None, float | None]]],
    path: str | Path,
    *,
    label: str,
) -> None:
    """Draw a value for each task and run into a PNG, a line for each task.

    Args:
        tasks: their names, from the top.
        points: by run, (value, standard error) of each task; None for what is not known.
        label: what the values are.
    """
    figure, axes = new_picture()
    figure.set_size_inches(8, max(2.5, 1.2 + 0.45 * len(tasks)))
    for number, (run, values) in enumerate(points.items()):
        # Runs of a task stand closely one below the other.
        shift = 0.12 * (number - (len(points) - 1) / 2)
        known = [(place + shift, *value) for place, value in enumerate(values) if value[0] is not None]
        heights, means, errors = zip(*known, strict=True) if known else ((), (), ())
        bars = [error or 0.0 for error in errors]
        axes.errorbar(means, heights, xerr=bars, fmt="o", markersize=5, capsize=3, linewidth=1.5, label=run)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlabel(label)
    save_picture(figure, axes, path)
