"""Jobs that train language models on a text, each in a run folder of its own beside the results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xlstm_jax.config import to_json
from xlstm_jax.evaluation.table.table import Job, Measured, Tell
from xlstm_jax.inference.run import Run
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.training.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig
from xlstm_jax.training.events import Event, Stepped


def experiment_of(
    model: LanguageModelConfig, data: DataConfig, *, steps: int, batch_size: int, lr: float, warmup: int
) -> Experiment:
    """nanoGPT's recipe for a CPU: AdamW, a cosine to a tenth of the learning rate; scored at the end alone."""
    return Experiment(
        model=model,
        data=data,
        optimizer=OptimizerConfig(
            lr=lr, warmup_steps=warmup, schedule="cosine", end_lr_factor=0.1, betas=(0.9, 0.99), weight_decay=0.1
        ),
        training=TrainingConfig(
            steps=steps, batch_size=batch_size, eval_every=0, checkpoint_every=500, keep_checkpoints=1
        ),
    )


def trained(path: Path, experiment: Experiment, seed: int, tell: Tell) -> Run:
    """The run at a path, trained to its end; begun there if it is not, gone on with if it was killed."""
    from rich.console import Console

    from xlstm_jax.inference.run import load
    from xlstm_jax.training.loop import train

    training = dataclasses.replace(experiment.training, seed=seed)
    train(
        path,
        dataclasses.replace(experiment, training=training),
        [_Teller(tell, training.steps)],
        console=Console(quiet=True),
    )
    return load(path)


class _Teller:
    """Says which step is made."""

    def __init__(self, tell: Tell, steps: int) -> None:
        self._tell, self._steps = tell, steps

    def handle(self, event: Event) -> None:
        """See `Listener`."""
        if isinstance(event, Stepped):
            self._tell(f"step {event.record['step']}/{self._steps}")


def text_job(
    folder: Path,
    row: str,
    columns: tuple[str, ...],
    title: str,
    experiment: Experiment,
    measure: Callable[[Run, Tell], Measured],
    *,
    asked: Mapping[str, Any],
    choice: str = "",
) -> Job:
    """A job that trains a run and measures it.

    Args:
        folder: of the results; runs lie in its `runs`.
        asked: what decides what `measure` finds, beside the run.
    """
    config = {"experiment": to_json(experiment), **asked}
    digest = hashlib.sha256(json.dumps(to_json(experiment), sort_keys=True).encode()).hexdigest()[:6]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{row} {choice}").strip("-")

    def start() -> Callable[[int, Tell], Measured]:
        def of_seed(seed: int, tell: Tell) -> Measured:
            path = folder / "runs" / f"{name}-{digest}-seed{seed}"
            return measure(trained(path, experiment, seed, tell), tell)

        return of_seed

    return Job(row=row, columns=columns, title=title, config=config, start=start, choice=choice)
