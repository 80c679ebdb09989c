"""Models for a laptop: the first thing to run, and the smallest thing that is a whole experiment."""

from __future__ import annotations

from xlstm_jax.models.xlstm_parallel.small import small_v1
from xlstm_jax.training.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig


def quickstart() -> Experiment:
    """Python's standard library in minutes, on two CPU cores, with nothing to download.

    Command: `xlstm train quickstart` (or `make quickstart`). Two slow cores (Intel Xeon, 2.5 GHz) needed 4 minutes and
    51 seconds with Python 3.11's library (11.5 MB), tokenizer and compilation included. It ends at 1.89 bits per byte
    on 15 held-out files, where a unigram byte model has 4.69, gzip -9 2.22 and xz -9 2.12.
    """
    return Experiment(
        model=small_v1(dim=256, blocks=4, heads=4, context_length=256),
        data=DataConfig(sources=("stdlib",), tokenizer="bpe", vocab_size=4096, validation_fraction=0.02),
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=40, schedule="cosine", end_lr_factor=0.05, weight_decay=0.1),
        training=TrainingConfig(
            steps=240,
            batch_size=8,
            eval_every=80,
            eval_tokens=32768,
            checkpoint_every=200,
            sample_prompts=("def ", "import ", "class "),
        ),
    )


def tiny() -> Experiment:
    """A whole experiment in seconds, for tests: bytes of the standard library, 53,736 parameters.

    Command: `xlstm train tiny`. It needs 50 seconds of a core (AMD EPYC), half of them to compile, and learns little
    more than which bytes are common: 3.96 bits per byte, where a unigram byte model has 4.55.
    """
    return Experiment(
        model=small_v1(dim=32, blocks=2, heads=2, context_length=64),
        data=DataConfig(sources=("stdlib",), tokenizer="bytes", validation_fraction=0.01),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=5, schedule="cosine"),
        training=TrainingConfig(steps=60, batch_size=4, eval_every=30, eval_tokens=8192, checkpoint_every=30),
    )
