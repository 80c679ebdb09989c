"""loss.png: the loss curve, drawn anew with each checkpoint, and with the report's baselines at the end."""

from __future__ import annotations

from xlstm_jax.report.loss_plot import plot_loss
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.events import Ended, Event, Saved, Started


class LossPlot:
    """Draws all records of metrics.jsonl."""

    def __init__(self) -> None:
        self._run: RunFolder | None = None

    def handle(self, event: Event) -> None:
        """See `Listener`."""
        match event:
            case Started(run=run):
                self._run = run
            case Saved() if self._run is not None:
                plot_loss(self._run.metrics().read(), self._run.plot_path, str(self._run))
            case Ended(outcome=outcome) if outcome is not None and self._run is not None:
                if report := self._run.read_report(outcome.opened.step):
                    plot_loss(self._run.metrics().read(), self._run.plot_path, str(self._run), report)
