"""Training on a synthetic task, and testing at lengths beyond those of training."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from xlstm_jax.evaluation.synthetic.accuracy import ROWS_AT_ONCE, LengthBin, Marks, by_length, make_answerer, mark
from xlstm_jax.evaluation.synthetic.at_targets import AtTargets, batch_of
from xlstm_jax.evaluation.synthetic.task import Rows, Task
from xlstm_jax.evaluation.synthetic.tasks import TASKS, get_task
from xlstm_jax.models.language_model import LanguageModelConfig, build_model
from xlstm_jax.training.config import OptimizerConfig
from xlstm_jax.training.errors import NotFiniteError
from xlstm_jax.training.events import Event, Scored, Stepped
from xlstm_jax.training.loop import Due, Loop
from xlstm_jax.training.step import init_state, make_train_step

TRAIN_BINS, TEST_BINS = 4, 9


@dataclass
class SyntheticConfig(Config):
    """A task and how it is learnt: AdamW with weight decay on matrices, a warm-up and a cosine.

    Raises:
        ConfigError: for a value that cannot be, a field that the task has not, and lengths that no row of it has.
    """

    task: Annotated[str, OneOf(tuple(TASKS))] = "parity"
    task_fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the task that are not at their defaults."""
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
    """Rows, of lengths as in training, of each look on the way, and others, of lengths as in the test, that tell when
    training may end and which of several trainings is the best. None of them is a row of the test."""
    look_every: PositiveInt = 25
    """Steps between two looks."""
    patience: PositiveInt | None = 4
    """Training ends early after so many looks in a row without a wrong answer, at lengths of training and of the test,
    those at short rows not counted; never if None. Who answers the lengths of training alone may still learn to go on
    beyond them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        task = self.build_task()
        for name in ("train_lengths", "test_lengths"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ConfigError(
                    f"SyntheticConfig.{name} is {low} to {high}, but must be two numbers >= 1 in ascending order"
                )
            task.lengths(low, high)
        if self.short_steps:
            task.lengths(self.train_lengths[0], self.short_length)

    def build_task(self) -> Task:
        """The task."""
        return get_task(self.task, self.task_fields)

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
    """Nats per target, the mean since the last look."""
    accuracy: float
    """On validation rows of the lengths of training, of tokens or rows as the task counts."""
    beyond: float | None = None
    """On those of the lengths of the test; asked where the others have no wrong answer."""


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
    """On fresh rows of the lengths of training, of tokens or rows as the task counts; so all that say no more."""
    validation_accuracy: float
    """On rows of the lengths of the test that are not those of the test: what trainings are chosen by."""
    test_accuracy: float
    """On rows of the lengths of the test."""
    test_tokens: float
    """The share of its targets that are right."""
    test_sequences: float
    """The share of its rows whose targets are all right."""
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
    """Train a fresh model and test it; see `Learner`."""
    return Learner(model_config, config).train(config.seed, report)


class Learner:
    """A kind of model that learns a task, again and again, with programs that are compiled once.

    Args:
        model_config: whose vocabulary is the task's, at least.
        config: whose seed does not count.

    Raises:
        ConfigError: for a vocabulary that is too small.
    """

    def __init__(self, model_config: LanguageModelConfig, config: SyntheticConfig) -> None:
        self.model_config, self.config, self.task = model_config, config, config.build_task()
        if model_config.vocab_size < self.task.vocab_size:
            raise ConfigError(
                f"model.vocab_size is {model_config.vocab_size}, but {self.task.name} has {self.task.vocab_size} tokens"
            )
        model = build_model(model_config)
        optimizer = config.optimizer().build(config.steps)
        some = jnp.zeros((1, config.train_lengths[1]), jnp.int32)
        self._fresh = jax.jit(lambda seed: init_state(model, optimizer, seed, some))
        self._answerer = make_answerer(model)
        self._step = make_train_step(AtTargets(model), optimizer)
        self._compiled: dict[tuple[int, ...], Any] = {}

    def train(self, seed: int, report: Callable[[Look], None] | None = None) -> SyntheticResult:
        """Train a fresh model and test it.

        Args:
            seed: fixes the initial parameters and all rows.
            report: called at each look.

        Raises:
            NotFiniteError: if the loss or the gradient is NaN or infinite.
        """
        config, task = dataclasses.replace(self.config, seed=seed), self.task
        state = self._fresh(np.uint32(seed))
        validation = task.rows(seed, "validation", 0, 2 * config.validation_rows, *config.train_lengths)
        seen, kept = (validation.part(start, config.validation_rows) for start in (0, config.validation_rows))
        beyond = task.rows(seed, "validation", 0, config.validation_rows, *config.test_lengths)
        test = task.rows(seed, "test", 0, config.test_rows, *config.test_lengths)
        self._compile(state, config)
        for rows in (seen, beyond):
            self._marks(state.params, rows.part(0, ROWS_AT_ONCE))  # which compiles
        wall, cpu = time.perf_counter(), time.process_time()
        looks, look_steps = _Looks(config, report), _look_steps(config)

        def score(params: Any) -> dict[str, float]:
            scores = {"accuracy": self._marks(params, seen).accuracy(task)}
            if scores["accuracy"] == 1:
                scores["beyond"] = self._marks(params, beyond).accuracy(task)
            return scores

        loop = Loop(
            lambda state, rows: self._compiled[_shape(rows)](state, rows),
            _batches(task, config, look_steps),
            due=lambda step: Due(score=step in look_steps, save=False),
            emit=looks.handle,
            score=score,
            stop=lambda: looks.flawless == config.patience,
        )
        try:
            state, done = loop.run(state, 0)
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}; a smaller learning rate may help") from None
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

        on_kept, on_beyond, on_test = (self._marks(state.params, rows) for rows in (kept, beyond, test))
        (low, high), (test_low, test_high) = config.train_lengths, config.test_lengths
        if task.by_position:  # those of all rows, and those that training has not
            low, test_low = 1, min(high + 1, test_high)
        return SyntheticResult(
            parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            steps=done,
            seconds=wall,
            cpu_seconds=cpu,
            train_accuracy=on_kept.accuracy(task),
            validation_accuracy=on_beyond.accuracy(task),
            test_accuracy=on_test.accuracy(task),
            test_tokens=on_test.tokens,
            test_sequences=on_test.sequences,
            train_bins=by_length(on_kept, task, low, high, TRAIN_BINS),
            test_bins=by_length(on_test, task, test_low, test_high, TEST_BINS),
            looks=looks.made,
        )

    def learns(self, model_config: LanguageModelConfig, config: SyntheticConfig) -> bool:
        """Whether it is for that too: all but the seed is the same."""
        return model_config == self.model_config and dataclasses.replace(config, seed=self.config.seed) == self.config

    def _marks(self, params: Any, rows: Rows) -> Marks:
        return mark(self._answerer, params, rows, self.task)

    def _compile(self, state: Any, config: SyntheticConfig) -> None:
        for at in {0, config.steps - 1}:
            rows = training_rows(self.task, config, at, 1)[0]
            if _shape(rows) not in self._compiled:
                self._compiled[_shape(rows)] = self._step.lower(state, rows).compile()  # type: ignore[attr-defined]


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
                look = Look(step, float(np.mean(self._losses)), scores["accuracy"], scores.get("beyond"))
                self._losses = []
                self.made.append(look)
                flawless = look.accuracy == 1 and look.beyond == 1 and step > self._config.short_steps
                self.flawless = self.flawless + 1 if flawless else 0
                if self._report is not None:
                    self._report(look)


def _shape(rows: Batch) -> tuple[int, ...]:
    return rows.inputs.tokens.shape  # type: ignore[attr-defined]


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
    """The batches of some steps, with as many targets a row as the task has at most.

    They must all be short, or none (see `SyntheticConfig.short_steps`). Rows are padded to the greatest length of their
    kind, no further: that makes two shapes to compile, and six times less work than the width of the test.
    """
    size = config.batch_size
    low, high = config.train_lengths
    if first_step < config.short_steps:
        high = config.short_length
    drawn = task.rows(config.seed, "train", first_step * size, steps * size, low, high)
    batch = batch_of(drawn, task.max_targets(high))
    # NumPy's arrays are cut into batches without a call of the device.
    return [jax.tree.map(lambda array, i=i: array[i * size : (i + 1) * size], batch) for i in range(steps)]
