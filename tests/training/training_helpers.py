"""A tiny corpus, a tiny model, and the experiments made of them."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from xlstm_jax.models.xlstm_parallel.small import small_v1
from xlstm_jax.training.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig
from xlstm_jax.training.events import Event, Said, Stepped

WORDS = [
    "def",
    "class",
    "return",
    "import",
    "self",
    "value",
    "for",
    "in",
    "if",
    "not",
    "None",
    "print",
    "range",
    "the",
    "of",
]


class Recorder:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def handle(self, event: Event) -> None:
        self.events.append(event)

    @property
    def said(self) -> list[str]:
        return [event.sentence for event in self.events if isinstance(event, Said)]

    @property
    def steps(self) -> list[int]:
        return [event.step for event in self.events if isinstance(event, Stepped)]


def write_corpus(folder: Path, documents: int = 40, seed: int = 0) -> Path:
    """Files of made-up text under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number in range(documents):
        lines = [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(rng.randint(3, 12))]
        (folder / f"{number:03d}.txt").write_text("\n".join(lines) + "\n")
    return folder


def tiny_experiment(corpus: Path | None = None, store: Path | str | None = None, **training: Any) -> Experiment:
    """Some ten thousand parameters on the bytes of a corpus."""
    fields: dict[str, Any] = {
        "steps": 12,
        "batch_size": 4,
        "eval_every": 4,
        "eval_tokens": 300,
        "checkpoint_every": 4,
        "log_every": 4,
    }
    return Experiment(
        model=small_v1(dim=16, blocks=1, heads=2, context_length=16),
        data=DataConfig(
            sources=(str(corpus),) if corpus else (),
            store=str(store) if store else None,
            tokenizer="bytes",
            validation_fraction=0.2,
        ),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=2),
        training=TrainingConfig(**fields | training),
    )


def with_fields(experiment: Experiment, part: str, **fields: Any) -> Experiment:
    """A copy with some fields of one part changed."""
    return dataclasses.replace(experiment, **{part: dataclasses.replace(getattr(experiment, part), **fields)})
