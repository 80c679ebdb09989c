"""What a person sees while a model trains: a live panel on a terminal, plain lines anywhere else."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from xlstm_jax.report.curve import curve_of, documents_of, draw_curve, smoothed
from xlstm_jax.training.events import Ended, Event, Outcome, Record, Said, Started, Stepped

REFRESH_SECONDS = 0.25
CLOCK_SECONDS = 1.0
"""So often the panel is drawn in any case: its clock runs while a step takes long, or a score, or a save."""
RECENT_STEPS = 50
"""The speed is that of so many steps, or of those since the last line; the loss on the panel is their mean."""

SCORE = ("validation_loss", "perplexity", "bits_per_byte")
"""What a record holds of a score on the held-out text."""


def make_terminal(title: str, log_every: int, console: Console) -> Terminal:
    """A live panel if the console is a terminal, else plain lines every `log_every` steps."""
    return LivePanel(console, title) if console.is_terminal else PlainLines(console, log_every)


class Terminal:
    """From events to what is shown; how, the two kinds below say."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def handle(self, event: Event) -> None:
        """See `Listener`."""
        match event:
            case Said(sentence):
                self.say(sentence)
            case Started(experiment=experiment, step=step, earlier=earlier):
                self.start(step, experiment.training.steps, earlier)
            case Stepped(record=record):
                self.step(record)
            case Ended(outcome):
                self.close()
                if outcome is not None:
                    self._tell_the_end(outcome)

    def say(self, sentence: str) -> None:
        """Something that happens once."""
        self._console.print(sentence, soft_wrap=True, markup=False)

    def start(self, first_step: int, last_step: int, earlier: Sequence[Record]) -> None:
        """Training goes from `first_step` to `last_step`; `earlier` are the records of the steps before."""

    def step(self, record: Record) -> None:
        """One more step."""

    def close(self) -> None:
        """Leave the terminal as it was."""

    def _tell_the_end(self, outcome: Outcome) -> None:
        run, step = outcome.opened.run, outcome.opened.step
        if outcome.exit_code:
            self.say(f"saved at step {step}; `xlstm train {run}` goes on from there")
        elif not outcome.trained:
            steps = outcome.opened.experiment.training.steps
            self.say(f"{run} is finished: it has made {step} of {steps} steps (more: --training.steps N)")


class PlainLines(Terminal):
    """One line every few steps and at each evaluation on the held-out text."""

    def __init__(self, console: Console, log_every: int) -> None:
        super().__init__(console)
        self._log_every = log_every
        self._pace = Pace(0, 1)

    def start(self, first_step: int, last_step: int, earlier: Sequence[Record]) -> None:
        self._pace = Pace(first_step, last_step)

    def step(self, record: Record) -> None:
        self._pace.add(record)
        step, last = record["step"], self._pace.last_step
        if step % self._log_every and step not in (1, last) and "validation_loss" not in record:
            return
        parts = [f"step {step}/{last}", f"loss {shown(record['loss'])}"]
        if "validation_loss" in record:
            found = f"perplexity {record['perplexity']:.1f}", f"{record['bits_per_byte']:.3f} bits/byte"
            parts.append(f"held out {record['validation_loss']:.4f} ({', '.join((*documents_of(record), *found))})")
        parts += [f"lr {record['lr']:.2e}", self._pace.speed()]
        self._pace.recent.clear()  # the next line tells of the steps after this one
        self.say("  ".join([*parts, *self._pace.left()]))


class LivePanel(Terminal):
    """A panel with progress, numbers and the loss curve, redrawn in place."""

    def __init__(self, console: Console, title: str) -> None:
        super().__init__(console)
        self._title = title
        self._pace = Pace(0, 1)
        self._records: list[Record] = []
        self._validation: Record | None = None
        self._drawn = 0.0
        self._live: Live | None = None
        self._lock = threading.Lock()
        """Held while what the panel shows changes: a thread draws it anew now and then."""

    def start(self, first_step: int, last_step: int, earlier: Sequence[Record]) -> None:
        self._pace = Pace(first_step, last_step)
        # A line of the file may be damaged; its numbers are not worth a crash.
        self._records = [r for r in earlier if _holds_numbers(r, "step", "loss", "lr")]
        scored = (r for r in reversed(self._records) if _holds_numbers(r, *SCORE))
        self._validation = next(scored, None)
        self._live = Live(console=self._console, refresh_per_second=1 / CLOCK_SECONDS, get_renderable=self._panel)
        self._live.start(refresh=True)

    def step(self, record: Record) -> None:
        with self._lock:
            self._pace.add(record)
            self._records.append(record)
            if "validation_loss" in record:
                self._validation = record
        now = time.monotonic()
        if self._live is not None and now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            self._live.refresh()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _panel(self) -> Panel:
        with self._lock:
            return self._drawing()

    def _drawing(self) -> Panel:
        width = max(min(self._console.width - 16, 90), 20)
        curve = draw_curve(
            smoothed(curve_of(self._records, "loss")),
            curve_of(self._records, "validation_loss"),
            width=width,
            height=9,
        )
        last = self._records[-1] if self._records else None
        step = last["step"] if last else self._pace.first_step
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(f"step {step}/{self._pace.last_step}"),
            ProgressBar(total=self._pace.last_step, completed=step, width=max(width - 44, 10)),
            Text(", ".join((duration(self._pace.elapsed()), *self._pace.left()))),
        )
        return Panel(
            Group(bar, self._numbers(), *(Text(line, style="cyan", no_wrap=True) for line in curve)),
            title=self._title,
            title_align="left",
            width=min(self._console.width, width + 16),
        )

    def _numbers(self) -> Table:
        table = Table.grid(padding=(0, 2))
        if not self._records:
            return table
        last = self._records[-1]
        recent = [r["loss"] for r in self._records[-RECENT_STEPS:] if r["loss"] is not None]
        loss = f"[b]{shown(sum(recent) / len(recent))}[/b]" if recent else "-"
        table.add_row(f"loss {loss}", f"lr {last['lr']:.2e}", self._pace.speed())
        if self._validation is not None:
            seen = self._validation
            where = ", ".join((f"step {seen['step']}", *documents_of(seen)))
            table.add_row(
                f"held out [b]{seen['validation_loss']:.4f}[/b]",
                f"perplexity {seen['perplexity']:.1f}",
                f"{seen['bits_per_byte']:.3f} bits/byte ({where})",
            )
        return table


def _holds_numbers(record: Record, *keys: str) -> bool:
    return all(isinstance(record.get(key), (int, float)) for key in keys)


class Pace:
    """Elapsed and remaining time, and the mean speed of the recent steps."""

    def __init__(self, first_step: int, last_step: int) -> None:
        self.first_step = first_step
        self.last_step = last_step
        self.recent: collections.deque[Record] = collections.deque(maxlen=RECENT_STEPS)
        self._step = first_step
        self._started = self._counted = time.monotonic()

    def add(self, record: Record) -> None:
        self._step, self._counted = record["step"], time.monotonic()
        self.recent.append(record)

    def speed(self) -> str:
        """Of the recent steps together: a single one may be timed short where it was computed beside the one before."""
        seconds = max(sum(r["step_time"] for r in self.recent), 1e-9)
        tokens, share = (
            sum(r.get(name, 0) * r["step_time"] for r in self.recent) / seconds
            for name in ("tokens_per_second", "flops_share")
        )
        return f"{tokens:,.0f} tokens/s" + (f"  {share:.0%} of peak" if share else "")

    def elapsed(self) -> float:
        """Seconds of this process."""
        return time.monotonic() - self._started

    def left(self) -> tuple[str, ...]:
        """The time left in words, by the mean over all steps of this process, pauses for scores and saves included.

        Empty before the first of them.
        """
        done = self._step - self.first_step
        seconds = (self._counted - self._started) / max(done, 1) * max(self.last_step - self._step, 0)
        return (f"{duration(seconds)} left",) if done else ()


def shown(loss: float | None) -> str:
    """A loss for people; None stands for one that is not finite."""
    return "not finite" if loss is None else f"{loss:.4f}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
