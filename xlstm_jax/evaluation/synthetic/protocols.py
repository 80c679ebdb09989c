"""How models are trained on a task and which training is shown: ours for minutes, and those of papers.

Of several learning rates that with the best mean accuracy over the seeds is shown, on rows of the lengths of the test
that are not those of the test; no row of the test decides on anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xlstm_jax.config import (
    Config,
    ConfigError,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
    near_miss,
)
from xlstm_jax.evaluation.synthetic.recipes import quick_dim, synthetic_model, synthetic_recipe
from xlstm_jax.evaluation.synthetic.task import Task
from xlstm_jax.evaluation.synthetic.tasks import FORMAL, SLICE
from xlstm_jax.evaluation.synthetic.training import SyntheticConfig
from xlstm_jax.models.language_model import LanguageModelConfig

Lengths = tuple[int, int]


@dataclass(frozen=True)
class Protocol(Config):
    """How a table of results is made; None leaves a value to the recipe of model and task (see `recipes`)."""

    name: str
    source: str
    """Where it was published, or how long it takes where it is ours."""
    differences: tuple[str, ...]
    """How far it is from what was published."""
    tasks: tuple[str, ...] | None = None
    """The tasks that it is for; all if None."""
    task_fields: dict[str, Any] = field(default_factory=dict)
    steps: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    train_lengths: Lengths | None = None
    test_lengths: Lengths | None = None
    test_rows: PositiveInt | None = None
    lrs: tuple[PositiveFloat, ...] | None = None
    """The learning rates of the sweep."""
    seeds: tuple[Seed, ...] = (0,)
    warmup: Share | None = None
    end_lr: PositiveFloat | None = None
    """The learning rate of the last step."""
    weight_decay: NonNegativeFloat | None = None
    short_share: Share | None = None
    look_every: PositiveInt | None = None
    patience: PositiveInt | None = None
    """Looks without a wrong answer after which training ends; never if None."""
    dim: PositiveInt | None = None
    heads: PositiveInt = 1
    packaged: bool = False
    """Whether sLSTM blocks are those of the package xlstm (see `recipes.synthetic_model`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lrs", "seeds"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ConfigError(f"Protocol.{name} is {values!r}, but must have at least one value, and each once")

    @property
    def distance(self) -> str:
        """Where it is from and how far from that, in a sentence."""
        return f"{self.source}; not as published: {', '.join(self.differences)}." if self.differences else self.source

    def trials(self, task: Task, models: Sequence[str], fields: Mapping[str, Any]) -> Iterator[Trial]:
        """All trainings on a task, those of one model one after another.

        Args:
            fields: of the task, changed by whoever asks for it.

        Raises:
            ConfigError: for a task that the protocol is not for, or a value that cannot be used.
        """
        if self.tasks is not None and task.name not in self.tasks:
            raise ConfigError(f"the protocol {self.name} is for {', '.join(self.tasks)}, but the task is {task.name}")
        names = ("steps", "batch_size", "train_lengths", "test_lengths", "test_rows", "warmup", "weight_decay")
        values = {name: getattr(self, name) for name in (*names, "short_share", "look_every")}
        values["task_fields"] = self.task_fields | dict(fields)
        for model in models:
            for lr in self.lrs or (None,):
                end = None if self.end_lr is None or lr is None else self.end_lr / lr
                for seed in self.seeds:
                    recipe = synthetic_recipe(model, task.name, lr=lr, end_lr_factor=end, seed=seed, **values)
                    config = dataclasses.replace(recipe, patience=self.patience)
                    dim = self.dim or quick_dim(task.name)
                    sizes = dim, config.train_lengths[1], self.heads
                    own = synthetic_model(model, config.build_task(), *sizes, packaged=self.packaged)
                    yield Trial(model, config, own)


@dataclass(frozen=True)
class Trial:
    """One model to train, with one learning rate and one seed."""

    model: str
    config: SyntheticConfig
    model_config: LanguageModelConfig


_FORMAL = tuple(task.name for task in FORMAL)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "quick",
            "Minutes on two cores",
            (
                "270 times fewer rows",
                "narrower models",
                "one learning rate a model, set beforehand",
                "languages and groups are learnt from short rows first, which no paper does",
                "training may end early, by validation rows",
            ),
            patience=4,
        ),
        Protocol(
            "xlstm",
            "xLSTM, arXiv 2405.04517, B.1.1",
            (
                "fresh rows",
                "the learning rate is chosen on rows of its own",
                "width 64, that of the published configs, as the text has none",
            ),
            tasks=_FORMAL,
            steps=100_000,
            batch_size=256,
            # The paper's 3-40 and 40-256 count the last answer, which is not among the inputs.
            train_lengths=(2, 39),
            test_lengths=(39, 255),
            test_rows=8192,
            lrs=(1e-2, 1e-3, 1e-4),
            seeds=(0, 1),
            warmup=0.1,
            end_lr=1e-5,
            weight_decay=0.1,
            short_share=0.0,
            look_every=1000,
            dim=64,
        ),
        Protocol(
            "slice",
            "SLiCE, arXiv 2505.17761, with its packaged sLSTM",
            (
                "one width of the two that it chose from on the rows of its test",
                "no early end on these",
                "the learning rate of its one published config, which is not of an xLSTM",
            ),
            tasks=(*_FORMAL, *(task.name for task in SLICE)),
            steps=100_001,
            batch_size=256,
            train_lengths=(3, 40),
            test_lengths=(40, 256),
            test_rows=8192,
            lrs=(2e-3,),
            seeds=(0, 1, 2, 3, 4),
            warmup=0.1,
            end_lr=1e-5,
            weight_decay=0.01,
            short_share=0.0,
            look_every=1000,
            dim=128,
            heads=4,
            packaged=True,
        ),
        Protocol(
            "zoology-fig2",
            "Zoology, arXiv 2312.04927, figure 2, for 64 tokens and 4 pairs, as many steps as its 64 epochs",
            (
                "rows are fresh where it has 100,000",
                "one cosine stands for one an epoch",
                "blocks have feed-forward layers",
            ),
            tasks=("mqar",),
            task_fields={"vocab_size": 8192, "random_non_queries": False},
            steps=12_544,
            batch_size=512,
            train_lengths=(64, 64),
            test_lengths=(64, 64),
            test_rows=3000,
            lrs=(1e-4, 4.6e-4, 2.15e-3, 1e-2),
            warmup=0.0,
            end_lr=1e-7,
            weight_decay=0.1,
            short_share=0.0,
            look_every=196,
            dim=64,
        ),
    )
}
"""By name."""


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in PROTOCOLS:
        hint = near_miss(name, PROTOCOLS)
        raise ConfigError(f"--protocol is {name!r}, but must be one of {', '.join(PROTOCOLS)}{hint}")
    return PROTOCOLS[name]


def choose(results: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which results are those of the learning rate that was best on the validation rows, the mean over seeds, of each
    model; of equally good ones the first."""
    scores: dict[tuple[str, float], list[float]] = {}
    for result in results:
        scores.setdefault((result["model"], result["config"]["lr"]), []).append(result["validation_accuracy"])
    means = {key: sum(values) / len(values) for key, values in scores.items()}
    best: dict[str, float] = {}
    for (model, lr), mean in means.items():
        if model not in best or mean > means[model, best[model]]:
            best[model] = lr
    return [best[result["model"]] == result["config"]["lr"] for result in results]
