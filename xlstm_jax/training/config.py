"""What an experiment is: the model, its data, its optimizer and its training, in dataclasses that check themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from xlstm_jax.config import (
    Above,
    AnyNonNegativeInt,
    AnyPositiveInt,
    AtLeast,
    Below,
    Config,
    ConfigError,
    PositiveInt,
    to_json,
)
from xlstm_jax.data.prepare import PrepareConfig
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig
from xlstm_jax.training.optimizers import AnyOptimizerConfig, OptimizerConfig

VOCAB_MULTIPLE = 64
"""A vocabulary size taken from a tokenizer is rounded up to this: matrix products like even widths."""


@dataclass
class DataConfig(PrepareConfig):
    """The text to learn from, and how it becomes tokens."""

    tokenizer: str = "bpe"
    """`bytes`, `bpe` (trained on the sources) or the path of a tokenizer.json."""
    vocab_size: Annotated[int, AtLeast(257), Below(2**31)] = 4096
    """Size of the vocabulary that `bpe` trains; other tokenizers bring their own."""
    seed: AnyNonNegativeInt = 0
    """Fixes the order of the documents. Which are held out does not depend on it."""
    sources: tuple[str, ...] = ("stdlib",)
    """Files, folders or globs; `stdlib` stands for the sources of the running Python's standard library."""
    store: str | None = None
    """Folder of the token store; a name under `stores/` that follows from the request for it if not given."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Finished token stores of one tokenizer and their weights, to learn from all: `{"stores/a": 3, "stores/b": 1}`
    takes three rows in four from the first. Stands in place of `sources`, `store` and how to prepare it."""
    mask_crossing: bool = False
    """Leave the first token of each document out of the loss: only the document before could tell of it."""

    fingerprint: str | None = None
    """Of the content of the store or the mixture; filled in when a run begins, so that it cannot go on with another
    text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for path, weight in self.mixture.items():
            if weight <= 0:
                raise ConfigError(f"DataConfig.mixture gives {path} the weight {weight!r}, but it must be a number > 0")
        if self.mixture:
            if self.store is not None:
                raise ConfigError(
                    f"DataConfig.mixture is given, and DataConfig.store is {self.store!r}; give one of them"
                )
            if self.sources not in ((), ("stdlib",)):
                raise ConfigError(
                    f"DataConfig.mixture is given, and DataConfig.sources is {self.sources!r}; give one of them"
                )
            self.sources = ()  # what is not read must not stand in the config of a run
        elif not self.sources and self.store is None:
            raise ConfigError("DataConfig.sources is empty and DataConfig.store is not given; one of them must be")

    def to_prepare(self) -> PrepareConfig:
        """What the store shall be."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(PrepareConfig)}
        return PrepareConfig(**fields | {"vocab_size": self.vocab_size if self.tokenizer == "bpe" else None})

    def store_path(self) -> Path:
        """Where the token store lies: as given, or a readable name under `stores/` that no other request shares; of a
        mixture the first."""
        if self.mixture:
            return Path(next(iter(self.mixture)))
        if self.store is not None:
            return Path(self.store)
        request = to_json(dataclasses.replace(self, store=None, mask_crossing=False, fingerprint=None))
        usual = DataConfig()
        for f in dataclasses.fields(self):
            # What is at its default stays out, so that a new setting leaves the names of stores as they are.
            if f.name not in _ALWAYS_IN_NAME and getattr(self, f.name) == getattr(usual, f.name):
                del request[f.name]
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
        tokenizer = f"bpe{self.vocab_size}" if self.tokenizer == "bpe" else Path(self.tokenizer).stem
        words = [Path(source).name or source for source in self.sources[:2]] + [tokenizer]
        return Path("stores") / f"{re.sub('[^A-Za-z0-9.]+', '-', '-'.join(words)).strip('-.')}-{digest}"


_ALWAYS_IN_NAME = {
    *("sources", "store", "tokenizer", "vocab_size", "validation_fraction", "seed", "mask_crossing", "fingerprint")
}
"""Fields of `DataConfig` that the derived name of a store follows from at their defaults too."""


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
    seed: Annotated[int, AtLeast(0), Below(2**63)] = 0
    """Fixes the initial parameters, the order of the rows and the dropout; < 2**32 where a run begins."""
    eval_every: AnyNonNegativeInt = 100
    """Steps between two evals on the held-out text; 0 for one at the end alone."""
    eval_tokens: Annotated[int, AtLeast(1), Below(2**63)] | None = 65536
    """Held-out tokens to read (whole documents) on the way; all of them if not given. The end reads all."""
    checkpoint_every: AnyNonNegativeInt = 200
    """Steps between two checkpoints; the last step always makes one. 0 for the last one alone."""
    keep_checkpoints: AnyPositiveInt = 2
    log_every: AnyPositiveInt = 10
    """Steps between two lines when the output is not a terminal; metrics.jsonl has every step."""
    skip_not_finite: AnyNonNegativeInt = 0
    """So many steps in a row may be without an update, because loss or gradient is not finite, before training stops;
    the run then goes on from before them. 0 stops at once."""
    silent_seconds: Annotated[float, Above(0)] = 30.0
    """Of several processes, one that shows no sign of life for so long counts as dead, and the others end."""
    stuck_seconds: Annotated[float, Above(0)] = 600.0
    """Several processes end when no step has ended for so long, and ten times as long as the longest one took."""
    sample_prompts: tuple[str, ...] | None = ()
    """Prompts that the trained model continues when training ends; the first words of held-out documents if null."""

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
    optimizer: AnyOptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.seq_len is None and self.model.context_length < 1:
            raise ConfigError(
                f"model.context_length is {self.model.context_length!r}, but must be a whole number >= 1 "
                "(or give training.seq_len)"
            )
        if self.training.batch_size * self.seq_len >= 2**31:
            raise ConfigError(
                f"training.batch_size is {self.training.batch_size}, but in rows of {self.seq_len} tokens must be < "
                f"{-(-(2**31) // self.seq_len)}: the tokens of a step are counted in 32 bits"
            )
        warmup, cooldown, steps = self.optimizer.warmup_steps, self.optimizer.cooldown_steps, self.training.steps
        if warmup > steps:
            raise ConfigError(
                f"optimizer.warmup_steps is {warmup}, but must be <= training.steps = {steps}; give both, as in "
                f"--training.steps {steps} --optimizer.warmup_steps {steps // 10}"
            )
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
