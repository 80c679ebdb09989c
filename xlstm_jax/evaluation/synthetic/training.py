"""Training on a formal language, and testing at lengths beyond those of training."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.config import (
    Config,
    ConfigError,
    NonNegativeFloat,
    OneOf,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
)
from xlstm_jax.data.store import Batch
from xlstm_jax.evaluation.synthetic.accuracy import Answerer, LengthBin, by_length, make_answerer, right_answers
from xlstm_jax.evaluation.synthetic.tasks import TASKS, Task
from xlstm_jax.evaluation.synthetic.tasks import Rows as TaskRows
from xlstm_jax.models.language_model import LanguageModelConfig, build_model
from xlstm_jax.training.config import OptimizerConfig
from xlstm_jax.training.errors import NotFiniteError
from xlstm_jax.training.events import Event, Scored, Stepped
from xlstm_jax.training.loop import Due, Loop
from xlstm_jax.training.step import init_state, make_train_step

ANSWER_BATCH = 256
"""Rows that are answered at once."""

TRAIN_BINS, TEST_BINS = 4, 9


@dataclass
class SyntheticConfig(Config):
    """A formal language and how it is learnt: AdamW with weight decay on matrices, a warm-up and a cosine."""

    task: Annotated[str, OneOf(tuple(TASKS))] = "parity"
    steps: PositiveInt = 400
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-2
    """Learning rate at its peak."""
    weight_decay: NonNegativeFloat = 0.1
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises."""
    end_lr_factor: PositiveFloat = 1e-3
    """Learning rate of the last step by that of the peak."""
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip_norm: float | None = 1.0
    seed: Seed = 0
    """Fixes the initial parameters and all rows."""
    train_lengths: tuple[int, int] = (3, 40)
    short_length: PositiveInt = 10
    """The first steps see rows up to this length only."""
    short_share: Share = 0.4
    """The share of the steps that are such. In long rows the one answer says too little about what is to be found: with
    a share of 0 parity takes some models many times as long, or is not found."""
    test_lengths: tuple[int, int] = (40, 256)
    test_rows: PositiveInt = 1024
    validation_rows: PositiveInt = 512
    """Batch, of lengths as in training, of each look on the way."""
    look_every: PositiveInt = 25
    """Steps between two looks."""
    patience: PositiveInt | None = 4
    """Training ends early after so many looks in a row without a wrong answer, those at short rows not counted; never
    if None."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_lengths", "test_lengths"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ConfigError(
                    f"SyntheticConfig.{name} is {low} to {high}, but must be two numbers >= 1 in ascending order"
                )
            TASKS[self.task].lengths(low, high)
        if self.short_steps:
            TASKS[self.task].lengths(self.train_lengths[0], self.short_length)

    @property
    def short_steps(self) -> int:
        """Number of steps with short rows; none if all rows are as short."""
        return round(self.short_share * self.steps) if self.short_length < self.train_lengths[1] else 0

    def optimizer(self) -> OptimizerConfig:
        """The optimizer's part."""
        return OptimizerConfig(
            lr=self.lr,
            warmup_steps=round(self.warmup * self.steps),
            end_lr_factor=self.end_lr_factor,
            betas=self.betas,
            weight_decay=self.weight_decay,
            grad_clip_norm=self.grad_clip_norm,
        )


@dataclass(frozen=True)
class Look:
    """Where training stands."""

    step: int
    loss: float
    """Nats per answer, the mean since the last look."""
    accuracy: float
    """On validation rows of the lengths of training."""


@dataclass(frozen=True)
class SyntheticResult:
    """What a model learnt."""

    parameters: int
    steps: int
    """Steps that were made."""
    seconds: float
    """Wall time of training, looks included, compilation not."""
    cpu_seconds: float
    """Time of all cores of this process, likewise."""
    train_accuracy: float
    """On fresh rows of the lengths of training."""
    test_accuracy: float
    """On rows of the lengths of the test."""
    train_bins: list[LengthBin]
    test_bins: list[LengthBin]
    looks: list[Look]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = dataclasses.asdict(self)
        for name in ("train_bins", "test_bins"):
            values[name] = [entry._asdict() for entry in getattr(self, name)]
        return values


def train_synthetic(
    model_config: LanguageModelConfig, config: SyntheticConfig, report: Callable[[Look], None] | None = None
) -> SyntheticResult:
    """Train a fresh model and test it.

    Args:
        model_config: whose vocabulary is the task's, at least.
        report: called at each look.

    Raises:
        ConfigError: for a vocabulary that is too small.
        NotFiniteError: if the loss or the gradient is NaN or infinite.
    """
    task = TASKS[config.task]
    if model_config.vocab_size < task.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {model_config.vocab_size}, but {task.name} has {task.vocab_size} tokens"
        )
    model = build_model(model_config)
    optimizer = config.optimizer().build(config.steps)
    width = config.train_lengths[1]
    state = jax.jit(lambda: init_state(model, optimizer, config.seed, jnp.zeros((1, width), jnp.int32)))()
    answerer = make_answerer(model)
    validation = task.rows(config.seed, "validation", 0, 2 * config.validation_rows, *config.train_lengths)
    seen, kept = (_part(validation, half, config.validation_rows) for half in (0, 1))

    step_function = make_train_step(model, optimizer)
    compiled = {
        rows.inputs.shape: step_function.lower(state, rows).compile()  # type: ignore[attr-defined]
        for rows in (training_rows(task, config, at, 1)[0] for at in {0, config.steps - 1})
    }
    _answered(answerer, state.params, seen)
    wall, cpu = time.perf_counter(), time.process_time()
    looks, look_steps = _Looks(config, report), _look_steps(config)
    loop = Loop(
        lambda state, rows: compiled[rows.inputs.shape](state, rows),
        _batches(task, config, look_steps),
        due=lambda step: Due(score=step in look_steps, save=False),
        emit=looks.handle,
        score=lambda params: {"accuracy": float(_answered(answerer, params, seen).mean())},
        stop=lambda: looks.flawless == config.patience,
    )
    try:
        state, done = loop.run(state, 0)
    except NotFiniteError as error:
        raise NotFiniteError(f"{error}; a smaller learning rate may help") from None
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

    test = task.rows(config.seed, "test", 0, config.test_rows, *config.test_lengths)
    right_kept, right_test = (_answered(answerer, state.params, rows) for rows in (kept, test))
    return SyntheticResult(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        steps=done,
        seconds=wall,
        cpu_seconds=cpu,
        train_accuracy=float(right_kept.mean()),
        test_accuracy=float(right_test.mean()),
        train_bins=by_length(kept, right_kept, *config.train_lengths, TRAIN_BINS),
        test_bins=by_length(test, right_test, *config.test_lengths, TEST_BINS),
        looks=looks.made,
    )


class _Looks:
    """Makes a `Look` of each score; `flawless` counts the last ones without a wrong answer."""

    def __init__(self, config: SyntheticConfig, report: Callable[[Look], None] | None) -> None:
        self.made: list[Look] = []
        self.flawless = 0
        self._config, self._report = config, report
        self._losses: list[float] = []

    def handle(self, event: Event) -> None:
        """See `Listener`."""
        match event:
            case Stepped(record=record):
                self._losses.append(record["loss"])
            case Scored(step=step, scores=scores):
                look = Look(step, float(np.mean(self._losses)), scores["accuracy"])
                self._losses = []
                self.made.append(look)
                self.flawless = self.flawless + 1 if look.accuracy == 1 and step > self._config.short_steps else 0
                if self._report is not None:
                    self._report(look)


def _look_steps(config: SyntheticConfig) -> list[int]:
    """The steps after which there is a look; they are counted anew from the last short rows."""
    short, every = config.short_steps, config.look_every
    looks = {*range(every, short, every), short, *range(short + every, config.steps, every), config.steps}
    return sorted(looks - {0})


def _batches(task: Task, config: SyntheticConfig, look_steps: Sequence[int]) -> Iterator[tuple[int, Batch]]:
    """Pairs of the steps made before and the rows of the next, drawn from one look to the next."""
    for first, after in itertools.pairwise([0, *look_steps]):
        yield from enumerate(training_rows(task, config, first, after - first), first)


def training_rows(task: Task, config: SyntheticConfig, first_step: int, steps: int) -> list[Batch]:
    """The batches of some steps; the only target of a row is the answer at its last token.

    They must all be short, or none (see `SyntheticConfig.short_steps`). Rows are padded to the greatest length of their
    kind, no further: that makes two shapes to compile, and six times less work than the width of the test.
    """
    size = config.batch_size
    low, high = config.train_lengths
    if first_step < config.short_steps:
        high = config.short_length
    drawn = task.rows(config.seed, "train", first_step * size, steps * size, low, high)
    at_end = np.arange(drawn.tokens.shape[1]) == drawn.lengths[:, None] - 1
    # NumPy's arrays are cut into batches without a call of the device.
    rows = Batch(
        inputs=drawn.tokens,  # type: ignore[arg-type]
        targets=np.where(at_end, drawn.answers[:, None], 0).astype(np.int32),  # type: ignore[arg-type]
        document_borders=np.zeros_like(at_end),
        loss_mask=at_end,
    )
    return [Batch(*(array[i * size : (i + 1) * size] for array in rows)) for i in range(steps)]


def _part(rows: TaskRows, number: int, count: int) -> TaskRows:
    return TaskRows(*(array[number * count : (number + 1) * count] for array in rows))


def _answered(answerer: Answerer, params: Any, rows: TaskRows) -> np.ndarray:
    return right_answers(answerer, params, rows, min(ANSWER_BATCH, len(rows.lengths)))
