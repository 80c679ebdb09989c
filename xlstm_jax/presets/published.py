"""What the presets of published sizes share: the vocabulary, the recipe, and the data that stand in for theirs."""

from __future__ import annotations

from typing import Literal

from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.training.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig

VOCAB_SIZE = 50304
"""That of the GPT-2 and GPT-NeoX tokenizers, rounded up; a store with a smaller vocabulary does as well."""


def published(
    model: LanguageModelConfig,
    *,
    lr: float,
    steps: int,
    batch_size: int,
    device_rows: int,
    schedule: Literal["cosine", "linear", "exponential", "constant"] = "exponential",
    warmup_steps: int = 750,
    cooldown_steps: int = 2000,
    eps: float = 1e-8,
) -> Experiment:
    """An experiment at a published size.

    The published runs read web text by the hundred gigabytes, which is for the user to bring: `--data.store STORE`, or
    `--sources PATH ...`, which trains a tokenizer of the published size. Without either it is Python's standard
    library, which is there to try the command out.

    Args:
        batch_size: rows in a step, over all devices of the published run.
        device_rows: rows that one device worked on at a time; the step is cut into micro-batches of so many.
        schedule: the decay of the learning rate from its peak `lr`, to a tenth.
    """
    return Experiment(
        model=model,
        data=DataConfig(sources=("stdlib",), tokenizer="bpe", vocab_size=VOCAB_SIZE, validation_fraction=0.005),
        optimizer=OptimizerConfig(
            lr=lr,
            schedule=schedule,
            warmup_steps=warmup_steps,
            cooldown_steps=cooldown_steps,
            end_lr_factor=0.1,
            betas=(0.9, 0.95),
            eps=eps,
            weight_decay=0.1,
            grad_clip_norm=0.5,
        ),
        training=TrainingConfig(
            steps=steps,
            batch_size=batch_size,
            accumulate=batch_size // device_rows,
            eval_every=2000,
            eval_tokens=2**20,
            checkpoint_every=1000,
            log_every=50,
        ),
    )
