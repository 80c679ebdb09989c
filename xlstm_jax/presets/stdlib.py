"""The best model of Python's standard library that a laptop makes in about an hour."""

from __future__ import annotations

from xlstm_jax.models.xlstm_parallel.small import small_v1
from xlstm_jax.training.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig


def stdlib() -> Experiment:
    """Python's standard library in about an hour, on two CPU cores: well under gzip's bits per byte.

    Command: `xlstm train stdlib`. It ends at 1.292 bits per byte on the 13 held-out files of Python 3.12's library,
    which gzip -9 packs to 1.943 and xz -9 to 1.802: measured on an H100, in under three minutes with preparation and
    evaluation. Two slow CPU cores (Intel Xeon, 2.5 GHz) take 4 seconds a step of 4,096 tokens, an hour and 40 minutes
    in all, faster ones half an hour; there, on Python 3.11's library (15 files, gzip 2.22), it was at 1.88 after 200
    of the 1500 steps and at 1.65 after 400.
    """
    return Experiment(
        model=small_v1(dim=384, blocks=6, heads=4, context_length=512),
        data=DataConfig(sources=("stdlib",), tokenizer="bpe", vocab_size=4096, validation_fraction=0.02),
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=100, schedule="cosine", end_lr_factor=0.03, weight_decay=0.1),
        training=TrainingConfig(
            steps=1500,
            batch_size=8,
            eval_every=200,
            eval_tokens=65536,
            checkpoint_every=200,
            sample_prompts=("def ", "import ", "class "),
        ),
    )
