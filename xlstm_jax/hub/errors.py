"""What can go wrong with weights."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 40


class WeightsError(ValueError):
    """Weights that do not fit the model or cannot be read; the message names every tensor or file that is to blame."""


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raise `WeightsError` with all the problems (the first of very many), if there are any."""
    if not problems:
        return
    shown = [*problems[:_SHOWN], f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else problems
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise WeightsError(f"{what} ({count}):\n  " + "\n  ".join(shown))
