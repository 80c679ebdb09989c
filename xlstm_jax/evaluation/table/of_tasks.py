"""Jobs that train tiny models on synthetic tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from xlstm_jax.config import to_json
from xlstm_jax.evaluation.synthetic.accuracy import LengthBin
from xlstm_jax.evaluation.synthetic.protocols import Protocol
from xlstm_jax.evaluation.synthetic.published import SOURCES, published
from xlstm_jax.evaluation.synthetic.recipes import MODELS
from xlstm_jax.evaluation.synthetic.tasks import get_task
from xlstm_jax.evaluation.synthetic.training import Learner, Look, SyntheticConfig, SyntheticResult
from xlstm_jax.evaluation.table.table import Column, Job, Measured, Published, Row, Tell
from xlstm_jax.models.language_model import LanguageModelConfig

TITLES = {"[0:1]": "xLSTM[0:1]", "[1:0]": "xLSTM[1:0]", "[1:1]": "xLSTM[1:1]", "llama": "Llama", "lstm": "LSTM"}

ROWS = tuple(Row(model, TITLES[model]) for model in MODELS)
"""The models, as rows."""


def columns_of(models: Sequence[str]) -> tuple[Column, ...]:
    """The models as columns, in the fewest letters, and guessing."""
    guessing = Column("guessing", "chance", "%", what="what guessing gets right")
    return (*(Column(model, TITLES[model].removeprefix("xLSTM"), "%") for model in models), guessing)


Value = Callable[[SyntheticResult], float]


def test_accuracy(result: SyntheticResult) -> float:
    """On all rows of the test."""
    return result.test_accuracy


def test_tokens(result: SyntheticResult) -> float:
    """Of single targets, where the task counts whole rows."""
    return result.test_tokens


def beyond_training(result: SyntheticResult) -> float:
    """At positions that training did not have, for tasks with a target at every position."""
    return _mean(result.test_bins)


def _mean(bins: Sequence[LengthBin]) -> float:
    return sum(entry.accuracy * entry.rows for entry in bins) / sum(entry.rows for entry in bins)


def task_jobs(
    protocol: Protocol,
    task: str,
    models: Sequence[str],
    *,
    name: str | None = None,
    models_are: Literal["rows", "columns"] = "rows",
    fields: Mapping[str, Any] | None = None,
    value: Value = test_accuracy,
) -> Iterator[Job]:
    """A job for every model and learning rate of a protocol.

    Args:
        name: of the row or column that the task is; its own if None.
        fields: of the task, that are not at their defaults.
    """
    own, name = get_task(task), name or task
    seen: set[tuple[str, float]] = set()
    for trial in protocol.trials(own, models, fields or {}):
        if (trial.model, trial.config.lr) in seen:  # the seeds are the table's
            continue
        seen.add((trial.model, trial.config.lr))
        row, column = (trial.model, name) if models_are == "rows" else (name, trial.model)
        yield Job(
            row=row,
            columns=(column,),
            title=f"{TITLES[trial.model]} {name}",
            config={"task": _without_seed(trial.config), "model": to_json(trial.model_config), "value": value.__name__},
            start=_start(trial.model_config, trial.config, column, value),
            choice=f"lr {trial.config.lr:g}",
        )


def _without_seed(config: SyntheticConfig) -> dict[str, Any]:
    return {name: value for name, value in to_json(config).items() if name != "seed"}


def _start(
    model_config: LanguageModelConfig, config: SyntheticConfig, column: str, value: Value
) -> Callable[[], Callable[[int, Tell], Measured]]:
    def start() -> Callable[[int, Tell], Measured]:
        learner = Learner(model_config, config)

        def measure(seed: int, tell: Tell) -> Measured:
            def report(look: Look) -> None:
                tell(f"step {look.step}/{config.steps}")

            result = learner.train(seed, report)
            bins = [*result.train_bins, *result.test_bins]
            return Measured(
                values={column: value(result)},
                selection=result.validation_accuracy,
                curve=[((entry.low + entry.high) / 2, entry.accuracy) for entry in bins],
                facts={
                    "parameters": result.parameters,
                    "steps": result.steps,
                    "train_accuracy": result.train_accuracy,
                    "test_sequences": result.test_sequences,
                },
            )

        return measure

    return start


def published_of_task(task: str, models: Sequence[str], models_are: Literal["rows", "columns"]) -> Iterator[Published]:
    """Everything that papers give for a task, in per cent."""
    own = get_task(task)
    for model in models:
        for found in published(own, model):
            source = SOURCES[found.source]
            row, column = (model, task) if models_are == "rows" else (task, model)
            yield Published(row, column, found.mean, found.deviation, source.paper, source.setting)
