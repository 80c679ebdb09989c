"""A loss curve made of letters: two dots across and four down in every character (braille)."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Unicode numbers the eight dots of a braille character column by column, the fourth row last.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800


def draw_curve(steps: Sequence[float], losses: Sequence[float], *, width: int = 60, height: int = 10) -> list[str]:
    """Lines of text with the curve, its highest and lowest value at the left and its last step below.

    Args:
        steps: ascending.
        losses: one a step; values that are not finite leave a gap.
        width, height: of the drawing in characters, without the labels.
    """
    points = [(s, v) for s, v in zip(steps, losses, strict=True) if math.isfinite(v)]
    if not points:
        return []
    values = [v for _, v in points]
    low, high = min(values), max(values)
    first, last = points[0][0], points[-1][0]
    columns, rows = 2 * width, 4 * height
    sums, counts = [0.0] * columns, [0] * columns
    for step, value in points:
        column = round((step - first) / (last - first) * (columns - 1)) if last > first else 0
        sums[column] += value
        counts[column] += 1
    cells = [[0] * width for _ in range(height)]
    previous: int | None = None
    for column in range(columns):
        if not counts[column]:
            continue
        share = (sums[column] / counts[column] - low) / (high - low) if high > low else 0.0
        row = round((1 - share) * (rows - 1))
        # Steep parts are filled, so that the eye sees one line.
        start = row if previous is None else previous + (1 if row > previous else -1 if row < previous else 0)
        for dot in range(min(start, row), max(start, row) + 1):
            cells[dot // 4][column // 2] |= _DOTS[column % 2][dot % 4]
        previous = row
    labels = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
    margin = max(len(label) for label in labels.values())
    lines = [
        f"{labels.get(i, ''):>{margin}} ┤{''.join(chr(_BLANK + dots) for dots in line)}" for i, line in enumerate(cells)
    ]
    ends = f"{first:g}", f"{last:g}"
    return [*lines, f"{'':>{margin}}  {ends[0]}{ends[1]:>{max(width - len(ends[0]), 1)}}"]
