"""Pictures of tables: bars with deviations, and small panels side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xlstm_jax.report.picture import new_panels, new_picture, save_panels, save_picture


class Value(NamedTuple):
    """A mean over seeds."""

    mean: float
    deviation: float | None


class Band(NamedTuple):
    """A curve over seeds: at each place the mean, the least and the greatest."""

    places: Sequence[float]
    means: Sequence[float]
    least: Sequence[float]
    greatest: Sequence[float]


def band_of(curves: Sequence[Sequence[tuple[float, float]]]) -> Band:
    """The band of curves over the same places; places that one of them lacks are left out."""
    values = [dict(curve) for curve in curves]
    places = sorted(set.intersection(*(set(curve) for curve in values)))
    at = [[curve[place] for curve in values] for place in places]
    return Band(places, [sum(row) / len(row) for row in at], [min(row) for row in at], [max(row) for row in at])


def plot_bars(groups: Mapping[str, Mapping[str, Value]], path: str | Path, *, title: str, unit: str) -> None:
    """Draw a bar for each value into a PNG, those of a group beside each other, in one colour a name."""
    figure, axes = new_picture()
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    width = 0.8 / max(len(names), 1)
    for number, name in enumerate(names):
        shown = [(place, values[name]) for place, values in enumerate(groups.values()) if name in values]
        places = [place + (number - (len(names) - 1) / 2) * width for place, _ in shown]
        deviations = [value.deviation or 0.0 for _, value in shown]
        axes.bar(places, [value.mean for _, value in shown], width * 0.92, yerr=deviations, label=name, ecolor="0.3")
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set(ylabel=unit, title=title)
    save_picture(figure, axes, path)


def plot_panels(
    panels: Mapping[str, Mapping[str, Band]],
    path: str | Path,
    *,
    title: str,
    axes_are: tuple[str, str],
    lines: Mapping[str, float],
    trained_to: float | None = None,
) -> None:
    """Draw a panel for each name, with a curve of shares and its band for each model, into a PNG.

    Args:
        lines: a height of each panel that is marked: what guessing has.
        trained_to: the end of the lengths of training, shaded.
    """
    figure, every = new_panels(len(panels))
    for axes, (name, bands) in zip(every, panels.items(), strict=True):
        for model, band in bands.items():
            (line,) = axes.plot(band.places, band.means, linewidth=1.6, label=model)
            axes.fill_between(band.places, band.least, band.greatest, color=line.get_color(), alpha=0.15, linewidth=0)
        if name in lines:
            axes.axhline(lines[name], color="0.6", linestyle="--", linewidth=1, label="guessing")
        if trained_to is not None:
            axes.axvspan(0, trained_to, color="0.93", zorder=0, label="lengths of training")
        axes.set_title(name, fontsize=10)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.04)
    save_panels(figure, every, path, title=title, axes_are=axes_are)


def plot_bands(
    bands: Mapping[str, Band],
    path: str | Path,
    *,
    title: str,
    axes_are: tuple[str, str],
    lines: Mapping[str, float] | None = None,
) -> None:
    """Draw curves with their bands over places that grow by the power of two, into a PNG.

    Args:
        lines: places to mark, such as the length of training.
    """
    figure, axes = new_picture()
    for name, band in bands.items():
        (line,) = axes.plot(band.places, band.means, linewidth=1.8, marker="o", markersize=4, label=name)
        axes.fill_between(band.places, band.least, band.greatest, color=line.get_color(), alpha=0.15, linewidth=0)
    for name, place in (lines or {}).items():
        axes.axvline(place, color="0.6", linestyle="--", linewidth=1, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda place, _: f"{place:,.0f}")
    axes.set(xlabel=axes_are[0], ylabel=axes_are[1], title=title)
    save_picture(figure, axes, path)


def plot_parabolas(
    points: Mapping[str, Sequence[tuple[float, float]]],
    parabolas: Mapping[str, Sequence[float]],
    path: str | Path,
    *,
    title: str,
    axes_are: tuple[str, str],
) -> None:
    """Draw points over sizes on a logarithmic axis, and parabolas over the logarithm of the size, into a PNG.

    Args:
        parabolas: coefficients, the highest power first, by the name of their points.
    """
    import numpy as np

    figure, axes = new_picture()
    for name, own in points.items():
        sizes, values = zip(*own, strict=True)
        (line,) = axes.plot(sizes, values, linestyle="none", marker="o", markersize=5, label=name)
        if name in parabolas:
            places = np.geomspace(min(sizes), max(sizes), 60)
            axes.plot(places, np.polyval(parabolas[name], np.log(places)), color=line.get_color(), linewidth=1.4)
    axes.set_xscale("log")
    axes.set(xlabel=axes_are[0], ylabel=axes_are[1], title=title)
    save_picture(figure, axes, path)
