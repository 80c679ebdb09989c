"""A progress bar for a terminal, and nothing where there is none to see it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class Progress:
    """Bars of bytes done, one after another; a context manager. With `show=False` it does nothing."""

    def __init__(self, show: bool):
        self._rich: Any = _rich_progress() if show else None

    def __enter__(self) -> Progress:
        if self._rich is not None:
            self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._rich is not None:
            self._rich.stop()

    @contextlib.contextmanager
    def bar(self, title: str, total: int, finished: int = 0) -> Iterator[Callable[[int], None]]:
        """A bar of `total` bytes of which some are `finished`; yields the function that counts more."""
        if self._rich is None:
            yield lambda _: None
            return
        task = self._rich.add_task(title, total=max(total, 1), completed=finished)
        yield lambda size: self._rich.update(task, advance=size)
        self._rich.update(task, completed=max(total, 1))


def _rich_progress() -> Any:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.SpinnerColumn(finished_text=" "),
        progress.TextColumn("{task.description:>10}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
