"""What can go wrong with weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SHOWN, _ALIKE = 40, 3
_BLOCK_NUMBER = re.compile(r"(?<=[._])\d+(?=\.)")


class WeightsError(ValueError):
    """Weights that do not fit the model or cannot be read; the message names every tensor or file that is to blame."""


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raise `WeightsError` with all the problems (the first of very many), if there are any.

    More than a few that differ in the number of a block alone share a line.
    """
    if not problems:
        return
    alike: dict[str, list[str]] = {}
    for problem in problems:
        alike.setdefault(_BLOCK_NUMBER.sub("#", problem), []).append(problem)
    lines: list[str] = []
    for group in alike.values():
        many = len(group) > _ALIKE
        lines += [f"{group[0]} (and so in {len(group) - 1} more blocks)"] if many else group
    shown = [*lines[:_SHOWN], f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else lines
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise WeightsError(f"{what} ({count}):\n  " + "\n  ".join(shown))
