"""The look of all pictures, from an empty one to the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from xlstm_jax.files import write_atomic


def new_picture() -> tuple[Any, Any]:
    """An empty figure of matplotlib and its axes."""
    # Late: it takes half a second, and `Figure` without pyplot needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_picture(figure: Any, axes: Any, path: str | Path) -> None:
    """Finish a picture in the look of all, and write it as a PNG, which appears complete."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    # Through memory: straight to a file, a full disk comes out as an error of the image library.
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(Path(path), picture.getvalue())
