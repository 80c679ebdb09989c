"""Loss curves: from the records of a run to points, and a curve made of letters.

Every character of it is two dots across and four down (braille).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

Points = list[tuple[int, float]]

SMOOTHED_OVER = 20
"""The line of the training loss is the mean over this part of the run: batches differ more than the model changes."""

MOST_POINTS = 400
"""A line needs no more."""

# Unicode numbers the eight dots of a braille character column by column, the fourth row last.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800


def curve_of(records: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Step and value of the records that have a finite number of that name."""
    found = [(r["step"], r[key]) for r in records if isinstance(r.get(key), (int, float)) and "step" in r]
    return [(step, value) for step, value in found if math.isfinite(value)]


def documents_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """How many held-out documents a record's score is of, in words; empty where it does not tell."""
    count = record.get("validation_documents")
    return () if count is None else (f"{count} document{'' if count == 1 else 's'}",)


def smoothed(points: Points) -> Points:
    """The mean around each point, of as many points after it as before; near the end of those that there are."""
    sums = [0.0, *itertools.accumulate(value for _, value in points)]
    reach = len(points) // SMOOTHED_OVER // 2
    line = []
    for at in range(0, len(points), -(-len(points) // MOST_POINTS) or 1):
        # The first fall is steep: a mean over what comes after alone would hide it.
        before = min(reach, at)
        first, behind = at - before, min(at + before + 1, len(points))
        line.append((points[at][0], (sums[behind] - sums[first]) / (behind - first)))
    return line


def draw_curve(
    line: Points, marks: Sequence[tuple[int, float]] = (), *, width: int = 60, height: int = 10
) -> list[str]:
    """Lines of text with the curve, its highest and lowest value at the left and its last step below.

    Args:
        line: steps, ascending, and finite values.
        marks: points to show beside it, each as a letter o.
        width, height: of the drawing in characters, without the labels.
    """
    points = line or list(marks)
    if not points:
        return []
    values = [v for _, v in (*line, *marks)]
    low, high = min(values), max(values)
    first, last = points[0][0], points[-1][0]
    columns, rows = 2 * width, 4 * height

    def column_of(step: int) -> int:
        share = (step - first) / (last - first) if last > first else 0
        return round(min(max(share, 0), 1) * (columns - 1))

    def row_of(value: float) -> int:
        share = (value - low) / (high - low) if high > low else 0
        return round((1 - share) * (rows - 1))

    sums, counts = [0.0] * columns, [0] * columns
    for step, value in line:
        column = column_of(step)
        sums[column] += value
        counts[column] += 1
    means = {column: sums[column] / counts[column] for column in range(columns) if counts[column]}
    for left, right in itertools.pairwise(sorted(means)):
        for column in range(left + 1, right):
            means[column] = means[left] + (means[right] - means[left]) * (column - left) / (right - left)
    cells = [[0] * width for _ in range(height)]
    previous: int | None = None
    for column, mean in sorted(means.items()):
        row = row_of(mean)
        # Steep parts are filled, so that the eye sees one line.
        start = row if previous is None else previous + (1 if row > previous else -1 if row < previous else 0)
        for dot in range(min(start, row), max(start, row) + 1):
            cells[dot // 4][column // 2] |= _DOTS[column % 2][dot % 4]
        previous = row
    drawn = [[chr(_BLANK + dots) for dots in row] for row in cells]
    for step, value in marks:
        drawn[row_of(value) // 4][column_of(step) // 2] = "o"
    labels = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
    margin = max(len(label) for label in labels.values())
    lines = [f"{labels.get(i, ''):>{margin}} ┤{''.join(row)}" for i, row in enumerate(drawn)]
    ends = f"{first:g}", f"{last:g}"
    return [*lines, f"{'':>{margin}}  {ends[0]}{ends[1]:>{max(width - len(ends[0]), 1)}}"]
