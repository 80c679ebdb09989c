"""What an experiment is: the model, its data, its optimizer and its training, in dataclasses that check themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from xlstm_jax.config import (
    AtLeast,
    Below,
    Config,
    ConfigError,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    to_json,
)
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig

VOCAB_MULTIPLE = 64
"""A vocabulary size taken from a tokenizer is rounded up to this: matrix products like even widths."""


@dataclass
class DataConfig(Config):
    """The text to learn from, and how it becomes tokens."""

    sources: tuple[str, ...] = ("stdlib",)
    """Files, folders or globs; `stdlib` stands for the sources of the running Python's standard library."""
    store: str | None = None
    """Folder of the token store; a name under `stores/` that follows from the fields below if not given."""
    tokenizer: str = "bpe"
    """`bytes`, `bpe` (trained on the sources) or the path of a tokenizer.json."""
    vocab_size: Annotated[int, AtLeast(257)] = 4096
    """Size of the vocabulary that `bpe` trains; other tokenizers bring their own."""
    validation_fraction: Annotated[float, AtLeast(0), Below(1)] = 0.02
    """Share of the documents (chosen by hash) that is held out."""
    seed: NonNegativeInt = 0
    """Fixes the order of the documents and which are held out."""
    mask_crossing: bool = False
    """Leave the first token of each document out of the loss: only the document before could tell of it."""

    fingerprint: str | None = None
    """Of the store's content; filled in when a run begins, so that it cannot go on with another text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources and self.store is None:
            raise ConfigError("DataConfig.sources is empty and DataConfig.store is not given; one of them must be")
        if not self.tokenizer:
            raise ConfigError("DataConfig.tokenizer is empty, but must be 'bytes', 'bpe' or a path")

    def store_path(self) -> Path:
        """Where the token store lies: as given, or a readable name under `stores/` that no other request shares."""
        if self.store is not None:
            return Path(self.store)
        request = to_json(dataclasses.replace(self, store=None, mask_crossing=False, fingerprint=None))
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
        tokenizer = f"bpe{self.vocab_size}" if self.tokenizer == "bpe" else Path(self.tokenizer).stem
        words = [Path(source).name or source for source in self.sources[:2]] + [tokenizer]
        return Path("stores") / f"{re.sub('[^A-Za-z0-9.]+', '-', '-'.join(words)).strip('-.')}-{digest}"


@dataclass
class OptimizerConfig(Config):
    """AdamW with decoupled weight decay (scaled by the learning rate), clipping by the global norm and a schedule."""

    name: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    """Learning rate at its peak."""
    schedule: Literal["cosine", "linear", "exponential", "constant"] = "cosine"
    """How the rate falls from its peak after the warm-up to `end_lr_factor` of it before the cool-down."""
    warmup_steps: NonNegativeInt = 100
    end_lr_factor: Share = 0.1
    cooldown_steps: NonNegativeInt = 0
    """Steps at the end over which the rate falls on towards 0, in equal parts."""
    betas: tuple[Annotated[float, AtLeast(0), Below(1)], Annotated[float, AtLeast(0), Below(1)]] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    decay_mask: Literal["kernels", "all"] = "kernels"
    """What decays: `kernels` as in the published runs (no embedding, norm or bias), or every parameter."""
    grad_clip_norm: PositiveFloat | None = 1.0
    """Gradients of a larger global norm are scaled down to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "exponential" and self.end_lr_factor == 0:
            raise ConfigError("OptimizerConfig.end_lr_factor is 0, but must be > 0 for the schedule 'exponential'")


@dataclass
class TrainingConfig(Config):
    """How long and in what portions a model is trained, and what is written down on the way."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 8
    """Rows in one step."""
    seq_len: PositiveInt | None = None
    """Tokens in a row; the model's `context_length` if not given."""
    accumulate: PositiveInt = 1
    """Micro-batches that a step's rows are cut into; the result is that of the whole batch, with less memory."""
    seed: NonNegativeInt = 0
    """Fixes the initial parameters, the order of the rows and the dropout."""
    eval_every: NonNegativeInt = 100
    """Steps between two looks at the held-out text; 0 for one at the end alone."""
    eval_tokens: PositiveInt | None = 65536
    """Held-out tokens to read (whole documents) on the way; all of them if not given. The end reads all."""
    checkpoint_every: NonNegativeInt = 200
    """Steps between two checkpoints; the last step always makes one. 0 for the last one alone."""
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 10
    """Steps between two lines when the output is not a terminal; metrics.jsonl has every step."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts that the trained model continues when training ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"TrainingConfig.accumulate is {self.accumulate!r}, but must divide batch_size = {self.batch_size}"
            )


@dataclass
class Experiment(Config):
    """Everything that a run is made from; what presets return and what a run folder keeps as config.json."""

    model: LanguageModelConfig = field(default_factory=xLSTMLMModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.seq_len is None and self.model.context_length < 1:
            raise ConfigError(
                f"model.context_length is {self.model.context_length!r}, but must be a whole number >= 1 "
                "(or give training.seq_len)"
            )
        warmup, cooldown, steps = self.optimizer.warmup_steps, self.optimizer.cooldown_steps, self.training.steps
        if warmup > steps:
            raise ConfigError(f"optimizer.warmup_steps is {warmup}, but must be <= training.steps = {steps}")
        if cooldown > steps - warmup:
            raise ConfigError(
                f"optimizer.cooldown_steps is {cooldown}, but must be <= training.steps - optimizer.warmup_steps = "
                f"{steps - warmup}"
            )

    @property
    def seq_len(self) -> int:
        """Tokens in a training row."""
        return self.training.seq_len or self.model.context_length


def with_vocabulary(experiment: Experiment, vocab_size: int) -> Experiment:
    """A copy whose model fits a tokenizer of `vocab_size` tokens: a model size of -1 becomes it, rounded up to 64.

    Raises:
        ConfigError: if the model's own vocabulary is smaller than the tokenizer's.
    """
    model = experiment.model
    if model.vocab_size == -1:
        rounded = -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        return dataclasses.replace(experiment, model=dataclasses.replace(model, vocab_size=rounded))
    if model.vocab_size < vocab_size:
        raise ConfigError(
            f"model.vocab_size is {model.vocab_size}, but the tokenizer has {vocab_size} tokens; "
            "give at least that, or -1 to take the tokenizer's"
        )
    return experiment
