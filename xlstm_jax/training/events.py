"""What happens while a model trains, as events, and who hears of them.

A listener is any object with `handle(event)`: it picks the events that it cares for and passes over the others. It is
called between two steps, while the device computes the next one; so what it does costs nothing as long as it takes no
longer than a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from xlstm_jax.runs.folder import RunFolder
    from xlstm_jax.training.config import Experiment
    from xlstm_jax.training.open_run import OpenRun

Record = Mapping[str, Any]
"""One line of metrics.jsonl."""


@dataclass(frozen=True)
class Said:
    """A sentence for whoever watches; the first ones come before `Started`."""

    sentence: str


@dataclass(frozen=True)
class Started:
    """The first step is about to be made."""

    run: RunFolder
    experiment: Experiment
    """Complete: with its vocabulary and its store's fingerprint."""
    step: int
    """Steps made before, by an earlier process."""
    earlier: Sequence[Record]
    """Their records."""


@dataclass(frozen=True)
class Stepped:
    """A step is made. The next one is under way already, unless this one was scored or saved."""

    step: int
    """Steps made so far."""
    record: Record


@dataclass(frozen=True)
class Scored:
    """The held-out text was scored; the step's record, of the event before, has these numbers too."""

    step: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Saved:
    """The checkpoint of a step is complete on the disk. It may be some steps ago: saving goes on beside training."""

    step: int
    path: Path
    """Of the checkpoint's folder, which a later one replaces in time."""


@dataclass
class Outcome:
    """How a call of `train` ended."""

    opened: OpenRun
    """The run, with its state after the last step."""
    exit_code: int
    """0 if all steps are made, 130 or 143 if a signal stopped training."""
    trained: bool
    """Whether there were any steps left to make."""


@dataclass(frozen=True)
class Ended:
    """Training is over, in whatever way; the last event."""

    outcome: Outcome | None
    """None after an error."""
    error: BaseException | None = None


Event = Said | Started | Stepped | Scored | Saved | Ended


class Listener(Protocol):
    """Who hears of a training."""

    def handle(self, event: Event) -> None:
        """Called with each event in turn, by the thread that trains."""


class Listeners:
    """Passes events on.

    What a listener of the run's own raises ends the training: a run whose records cannot be written is worth nothing.
    Another one that raises is told of once and hears no more.

    Args:
        own: the run's, called first.
        others: trackers and the like.
    """

    def __init__(self, own: Sequence[Listener], others: Sequence[Listener] = ()) -> None:
        self._own, self._others = tuple(own), list(others)

    def emit(self, event: Event) -> None:
        """Tell all listeners, one after another."""
        for listener in self._own:
            listener.handle(event)
        for listener in tuple(self._others):
            try:
                listener.handle(event)
            except Exception as error:
                self._others.remove(listener)
                name, what = type(listener).__name__, f"{type(error).__name__}: {error}"
                self.say(f"note: the listener {name} failed at {type(event).__name__} and hears no more ({what})")

    def say(self, sentence: str) -> None:
        """Emit a sentence."""
        self.emit(Said(sentence))
