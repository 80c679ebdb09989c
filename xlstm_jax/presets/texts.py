"""The texts that language models are compared on, with their usual splits; the files are yours to fetch.

Each preset looks for its file under its usual name, and says where it comes from if it is not here; `--sources PATH`
names it elsewhere. `xlstm eval RUN --text FILE` scores what is neither learnt from nor held out.
"""

from __future__ import annotations

from xlstm_jax.models.xlstm_parallel.small import small_v1
from xlstm_jax.training.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig


def shakespeare() -> Experiment:
    """Tiny Shakespeare by bytes: the last tenth is held out, in a budget that another package publishes a loss for.

    Command: `xlstm train shakespeare`, beside a file tinyshakespeare.txt. nanoGPT's recipe for a CPU (0.80 million
    parameters) reads as many tokens, 1.54 million in rows of 64, and ends at 1.88 nats a character on random rows of
    the same held-out text. This model of 0.94 million parameters ended at 1.60 on such rows, and at 1.56 (2.25 bits) on
    the whole text with its memory carried: measured in under three minutes on two CPU cores, with one seed.
    """
    return Experiment(
        model=small_v1(dim=128, blocks=4, heads=4, context_length=64),
        data=DataConfig(sources=("tinyshakespeare.txt",), tokenizer="bytes", validation_tail=0.1),
        optimizer=OptimizerConfig(
            lr=1e-3, warmup_steps=100, schedule="cosine", end_lr_factor=0.1, betas=(0.9, 0.99), weight_decay=0.1
        ),
        training=TrainingConfig(
            steps=2000,
            batch_size=12,
            eval_every=250,
            eval_tokens=None,
            checkpoint_every=500,
            log_every=50,
            sample_prompts=("ROMEO:", "First Citizen:\n"),
        ),
    )


def enwik8() -> Experiment:
    """The first 100 MB of a Wikipedia dump by bytes: the first 90 MB are learnt from, the last 10 MB held out.

    Command: `xlstm train enwik8`, beside the file enwik8. Published numbers are of the last 5 MB:
    `tail -c 5000000 enwik8 > enwik8.test; xlstm eval enwik8 --text enwik8.test`. 15 million parameters, for one GPU.
    Not trained by us.
    """
    return _wikipedia("enwik8")


def text8() -> Experiment:
    """100 MB of lower-case Wikipedia by bytes: the first 90 MB are learnt from, the last 10 MB held out.

    Command: `xlstm train text8`, beside the file text8. Published numbers are of the last 5 MB:
    `tail -c 5000000 text8 > text8.test; xlstm eval text8 --text text8.test`. 15 million parameters, for one GPU.
    Not trained by us.
    """
    return _wikipedia("text8")


def _wikipedia(file: str) -> Experiment:
    return Experiment(
        model=small_v1(dim=384, blocks=8, heads=4, context_length=512),
        data=DataConfig(sources=(file,), tokenizer="bytes", validation_tail=0.1),
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=500, schedule="cosine", end_lr_factor=0.05, weight_decay=0.1),
        training=TrainingConfig(
            steps=20_000,
            batch_size=32,
            eval_every=1000,
            eval_tokens=None,
            checkpoint_every=1000,
            sample_prompts=None,
        ),
    )


def wikitext2() -> Experiment:
    """WikiText-2 by a BPE of its training text: two million words, with the validation file held out.

    Command: `xlstm train wikitext2`, beside the unzipped folder wikitext-2. The test file is scored by
    `xlstm eval wikitext2 --text wikitext-2/wiki.test.tokens`. 7 million parameters, for a laptop. Not trained by us.
    """
    return Experiment(
        model=small_v1(dim=256, blocks=4, heads=4, context_length=256),
        data=DataConfig(
            sources=("wikitext-2/wiki.train.tokens",),
            validation=("wikitext-2/wiki.valid.tokens",),
            tokenizer="bpe",
            vocab_size=8192,
        ),
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=100, schedule="cosine", end_lr_factor=0.05, weight_decay=0.1),
        training=TrainingConfig(
            steps=2000,
            batch_size=8,
            eval_every=200,
            eval_tokens=None,
            checkpoint_every=500,
            sample_prompts=None,
        ),
    )
