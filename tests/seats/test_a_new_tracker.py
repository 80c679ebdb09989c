"""A new tracker is one listener: a file of its own, and the word `listeners` where training is called."""

from __future__ import annotations

import csv
from pathlib import Path

from rich.console import Console

from xlstm_jax import train
from xlstm_jax.presets import get_preset
from xlstm_jax.training.events import Ended, Event, Started, Stepped


class CsvTracker:
    """Writes step and loss, a line a step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def handle(self, event: Event) -> None:
        if isinstance(event, Started):
            self.file = self.path.open("w", newline="")
            self.lines = csv.writer(self.file)
        elif isinstance(event, Stepped):
            self.lines.writerow([event.step, event.record["loss"]])
        elif isinstance(event, Ended):
            self.file.close()


def test_a_tracker_hears_of_every_step(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} is a number. " * 40)
    experiment = get_preset("tiny")
    experiment.data.sources, experiment.data.store = (str(tmp_path / "text"),), str(tmp_path / "store")
    experiment.training.steps = 5
    experiment.training.checkpoint_every = experiment.training.eval_every = 0
    train(tmp_path / "run", experiment, [CsvTracker(tmp_path / "loss.csv")], console=Console(quiet=True))
    with (tmp_path / "loss.csv").open() as file:
        lines = list(csv.reader(file))
    assert [int(step) for step, _ in lines] == [1, 2, 3, 4, 5]
    assert all(0 < float(loss) < 10 for _, loss in lines)
