"""The look of all pictures, from an empty one to the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from xlstm_jax.files import write_atomic


def new_picture() -> tuple[Any, Any]:
    """An empty figure of matplotlib and its axes."""
    figure = new_figure(8, 4.5)
    return figure, figure.add_subplot()


def new_panels(count: int) -> tuple[Any, list[Any]]:
    """An empty figure and its axes, side by side in rows of up to four, that share what they run over."""
    columns = _columns(count)
    rows = -(-count // columns)
    figure = new_figure(1 + 3 * columns, 1 + 2.1 * rows)
    every = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    shown = list(every)
    for empty in shown[count:]:
        empty.remove()
    return figure, shown[:count]


def _columns(panels: int) -> int:
    return min(panels, 4 if panels > 6 else 3)


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches, for axes of one's own."""
    # Late: it takes half a second, and `Figure` without pyplot needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_picture(figure: Any, axes: Any, path: str | Path) -> None:
    """Finish a picture in the look of all, and write it as a PNG, which appears complete."""
    finish(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    write_figure(figure, path)


def save_panels(figure: Any, every: list[Any], path: str | Path, *, title: str, axes_are: tuple[str, str]) -> None:
    """Finish panels, with one legend for all, and write them; see `save_picture`."""
    columns = _columns(len(every))
    for place, axes in enumerate(every):
        finish(axes)
        if place % columns == 0:
            axes.set_ylabel(axes_are[1])
        if place + columns >= len(every):  # nothing stands below
            axes.set_xlabel(axes_are[0])
            axes.tick_params(labelbottom=True)
    named = dict(zip(*reversed(every[0].get_legend_handles_labels()), strict=True)) if every else {}
    figure.legend(named.values(), named.keys(), frameon=False, loc="outside lower center", ncols=min(len(named), 7))
    figure.suptitle(title, fontsize=11)
    write_figure(figure, path)


def finish(axes: Any) -> None:
    """The look of all axes."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def write_figure(figure: Any, path: str | Path) -> None:
    """As a PNG, which appears complete."""
    # Through memory: straight to a file, a full disk comes out as an error of the image library.
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(Path(path), picture.getvalue())
