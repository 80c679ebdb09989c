"""How far a long piece of work is: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

Waiting = Callable[..., contextlib.AbstractContextManager[None]]
"""`clock` with a console of its own, or `silently`."""

WIDTH = 120
"""Of what is written to a file or a pipe, which have none of their own."""


def make_console(*, stderr: bool = False) -> Console:
    """The console of standard output, or of standard error."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(highlight=False, stderr=stderr, width=None if stream.isatty() else WIDTH)


class Bar:
    """One piece of work, and how much of it is done; to call it counts more."""

    def __init__(self, title: str, total: int | None, done: int, show: Callable[[Bar], None] = lambda bar: None):
        self.title, self.total, self.done, self.text = title, total, done, ""
        self._show = show

    def __call__(self, count: int = 1) -> None:
        self.to(self.done + count)

    def to(self, done: int, text: str | None = None, total: int | None = None) -> None:
        """So much is done, of so much; `text` says how it stands."""
        self.done = done
        self.text = self.text if text is None else text
        self.total = self.total if total is None else total
        self._show(self)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """The items, one more done with each."""
        for item in items:
            yield item
            self()

    def __str__(self) -> str:
        return f"{self.title}: {self.text}" if self.text else self.title


class Progress:
    """Shows pieces of work, one after another.

    Args:
        show: False shows nothing.
        console: standard error if None.
        unit: what is counted. Bars of bytes stay when they are full; others go.
        seconds: between two lines, where there is no terminal.
    """

    def __init__(
        self,
        show: bool = True,
        console: Console | None = None,
        *,
        unit: Literal["", "bytes"] = "",
        seconds: float = 10.0,
    ):
        self._shown, self._unit, self._seconds = show, unit, seconds
        self._console = console

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        if self._shown:
            (self._console or make_console(stderr=True)).print(sentence, soft_wrap=True)

    @contextlib.contextmanager
    def bar(self, title: str, total: int | None = None, done: int = 0) -> Iterator[Bar]:
        """A bar of `total` (None: not known yet) of which some is `done`. Where there is no terminal, a text that it
        has in the end is shown in any case."""
        if not self._shown:
            yield Bar(title, total, done)
            return
        console = self._console or make_console(stderr=True)
        if not console.is_terminal:
            lines = _Lines(console, self._seconds)
            bar = Bar(title, total, done, lines)
            yield bar
            if bar.text and lines.said != bar.done:
                lines.say(bar)
            return
        with _rich_progress(console, self._unit) as bars:
            task = bars.add_task(title, total=total, completed=done)

            def show(bar: Bar) -> None:
                bars.update(task, completed=bar.done, total=bar.total, description=str(bar))

            bar = Bar(title, total, done, show)
            yield bar
            bars.update(task, completed=max(bar.total or 0, 1), total=max(bar.total or 0, 1))


class _Lines:
    """A line now and then."""

    def __init__(self, console: Console, seconds: float) -> None:
        self._console, self._seconds, self._last = console, seconds, time.monotonic()
        self.said: int | None = None
        """How much was done at the last line."""

    def __call__(self, bar: Bar) -> None:
        if time.monotonic() - self._last >= self._seconds:
            self.say(bar)

    def say(self, bar: Bar) -> None:
        self._last, self.said = time.monotonic(), bar.done
        share = f" ({bar.done / bar.total:.0%})" if bar.total else ""
        self._console.print(f"{bar}{share}", soft_wrap=True, markup=False)


@contextlib.contextmanager
def clock(title: str, console: Console | None = None, *, terminal_only: bool = False) -> Iterator[None]:
    """Say what is being done while nobody can tell how long it takes: with a clock on a terminal, as a line elsewhere.

    Args:
        console: standard error if None.
        terminal_only: say nothing where there is no terminal.
    """
    console = console or make_console(stderr=True)
    if console.is_terminal:
        from rich import progress

        columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.TimeElapsedColumn())
        shares = _shares_terminal()
        with progress.Progress(*columns, console=console, transient=True, redirect_stdout=shares) as shown:
            shown.add_task(title, total=None)
            yield
        return
    if not terminal_only:
        console.print(f"{title} ...", soft_wrap=True, markup=False)
    yield


def silently(title: str, *, terminal_only: bool = False) -> contextlib.AbstractContextManager[None]:
    """What `clock` is for whom nobody watches."""
    return contextlib.nullcontext()


def _rich_progress(console: Console, unit: str) -> Any:
    from rich import progress

    counted = [progress.DownloadColumn(binary_units=True), progress.TransferSpeedColumn()] if unit else []
    return progress.Progress(
        progress.SpinnerColumn(finished_text=" "),
        progress.TextColumn("{task.description:>10}", markup=False),
        progress.BarColumn(),
        *(counted or [progress.MofNCompleteColumn()]),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=not unit,
        redirect_stdout=_shares_terminal(),
    )


def _shares_terminal() -> bool:
    """Whether what is printed meanwhile has to be put above what moves; elsewhere it must go where it was sent."""
    return sys.stdout is not None and sys.stdout.isatty()
