"""The picture of a run: its training and held-out loss over the steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlstm_jax.report.picture import new_picture, save_picture

SMOOTHED_OVER = 20
"""The line of the training loss is the mean over this part of the run: batches differ more than the model changes."""

MOST_POINTS = 400
"""A line needs no more."""


def plot_loss(records: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw `loss` and `validation_loss` of the records of a metrics.jsonl into a PNG, which appears complete.

    Args:
        records: what `MetricsLog.read` returns; without any loss in them nothing is drawn.
    """
    training = _curve(records, "loss")
    held_out = _curve(records, "validation_loss")
    if not training and not held_out:
        return
    figure, axes = new_picture()
    if training:
        axes.plot(*zip(*training, strict=True), color="0.85", linewidth=0.8, label="_every step")
        axes.plot(*zip(*_smoothed(training), strict=True), color="tab:blue", linewidth=1.6, label="training")
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True), color="tab:orange", linewidth=1.8, marker="o", markersize=4, label="held out"
        )
        step, loss = held_out[-1]
        axes.annotate(
            f"{loss:.3f}", (step, loss), xytext=(-4, 8), textcoords="offset points", ha="right", color="tab:orange"
        )
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    _leave_out_the_first_fall(axes, training)
    save_picture(figure, axes, path)


def _curve(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(r["step"], r[key]) for r in records if r.get(key) is not None and "step" in r]


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The mean around each point, of as many points after it as before; near the end of those that there are."""
    sums = [0.0, *itertools.accumulate(value for _, value in points)]
    reach = len(points) // SMOOTHED_OVER // 2
    line = []
    for at in range(0, len(points), -(-len(points) // MOST_POINTS)):
        # The first fall is steep: a mean over what comes after alone would hide it.
        before = min(reach, at)
        first, behind = at - before, min(at + before + 1, len(points))
        line.append((points[at][0], (sums[behind] - sums[first]) / (behind - first)))
    return line


def _leave_out_the_first_fall(axes: Any, points: Sequence[tuple[int, float]]) -> None:
    """Cut the axis below the first steps' loss: else their fall fills the picture and the rest is a flat line."""
    later = [v for _, v in points[len(points) // 20 :]]
    if len(later) >= 20:
        low, high = min(later), max(later)
        axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
