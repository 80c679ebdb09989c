"""The picture of a run: its training and held-out loss over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlstm_jax.report.curve import SMOOTHED_OVER, Points, curve_of, documents_of, smoothed
from xlstm_jax.report.picture import new_picture, save_picture

FEW_STEPS = 20
"""Fewer are marked each: one alone makes no line."""

BASELINES = {"gzip": "gzip -9", "xz": "xz -9"}
"""Lines to be under, by their names in report.json."""


def plot_loss(
    records: Sequence[Mapping[str, Any]],
    path: str | Path,
    title: str = "",
    report: Mapping[str, Any] | None = None,
) -> None:
    """Draw `loss` and `validation_loss` of the records of a metrics.jsonl into a PNG, which appears complete.

    Args:
        records: what `MetricsLog.read` returns; without any loss in them nothing is drawn.
        report: the run's report.json, whose baselines are drawn beside. Its score, of all held-out text, makes the axis
            in bits per byte; those of the records may be of a part, on which the baselines have other bits.
    """
    training, held_out = curve_of(records, "loss"), curve_of(records, "validation_loss")
    if not training and not held_out:
        return
    figure, axes = new_picture()
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if training:
        line, mark = smoothed(training), "o" if len(training) < FEW_STEPS else None
        label = "training"
        if len(training) >= 2 * SMOOTHED_OVER:  # the line of fewer is that of each step
            axes.plot(*zip(*training, strict=True), color="0.85", linewidth=0.8, label="training, each step")
            label = "training, smoothed"
        axes.plot(
            *zip(*line, strict=True),
            color="tab:blue",
            linewidth=1.6,
            marker=mark,
            markersize=4,
            label=label,
        )
    if held_out:
        scored = next(record for record in reversed(records) if "validation_loss" in record)
        label = f"{', '.join(('held out', *documents_of(scored)))}: {held_out[-1][1]:.3f} at step {held_out[-1][0]}"
        axes.plot(
            *zip(*held_out, strict=True), color="tab:orange", linewidth=1.8, marker="o", markersize=4, label=label
        )
    _leave_out_the_first_fall(axes, training, held_out)
    if (bits := _bits_per_nat([*records, *filter(None, [report])])) is not None:
        second = axes.secondary_yaxis("right", functions=(lambda nats: nats * bits, lambda found: found / bits))
        second.set_ylabel("bits per byte of held-out text")
        baselines = (report or {}).get("comparison") or {}
        _draw_baselines(axes, {name: value / bits for name, value in baselines.items()})
    save_picture(figure, axes, path)


def _bits_per_nat(scores: Sequence[Mapping[str, Any]]) -> float | None:
    """Bits per byte of one nat per token, by the last of the scores: a constant of its text and the tokenizer."""
    for score in reversed(scores):
        loss, bits = score.get("validation_loss"), score.get("bits_per_byte")
        if isinstance(loss, float) and isinstance(bits, float) and loss > 0 and 0 < bits / loss < math.inf:
            return bits / loss
    return None


def _draw_baselines(axes: Any, nats: Mapping[str, float]) -> None:
    low, high = axes.get_ylim()
    shown = {name: value for name, value in nats.items() if name in BASELINES and low < value < high}
    for name, value in shown.items():
        axes.axhline(value, color="0.4", linewidth=0.9, linestyle="--", label="_baseline")
        # At the right edge, where the curves have left the top.
        axes.text(
            1,
            value,
            f"{BASELINES[name]} ",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom" if value == max(shown.values()) else "top",
            fontsize="small",
            color="0.4",
        )


def _leave_out_the_first_fall(axes: Any, training: Points, held_out: Points) -> None:
    """Cut the axis below the first steps of a long run: else their fall fills the picture, the rest is a flat line. The
    outermost of the later ones would do the same."""
    later = sorted(v for _, v in training[len(training) // 50 :])
    if len(later) >= FEW_STEPS:
        usual, scores = later[len(later) // 100 : len(later) - len(later) // 200], [v for _, v in held_out]
        low, high = min([usual[0], *scores]), max([usual[-1], *scores])
        axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
