"""metrics.jsonl: a line a step."""

from __future__ import annotations

from xlstm_jax.runs.metrics import MetricsLog
from xlstm_jax.training.events import Ended, Event, Started, Stepped


class MetricsFile:
    """Appends each step's record."""

    def __init__(self) -> None:
        self._log: MetricsLog | None = None

    def handle(self, event: Event) -> None:
        """See `Listener`."""
        match event:
            case Started(run=run):
                self._log = run.metrics()
            case Stepped(record=record) if self._log is not None:
                self._log.append(record)
            case Ended() if self._log is not None:
                self._log.close()
