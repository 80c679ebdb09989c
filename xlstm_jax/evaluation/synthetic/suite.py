"""`xlstm eval synthetic`: tiny models learn a formal language, and are tested at greater lengths."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_jax.config import ConfigError, to_json
from xlstm_jax.evaluation.suite import Record, Suite, option
from xlstm_jax.machine.progress import Bar, Progress

if TYPE_CHECKING:
    from rich.table import Table

    from xlstm_jax.evaluation.synthetic.task import Task
    from xlstm_jax.evaluation.synthetic.training import Look, SyntheticConfig, SyntheticResult
    from xlstm_jax.models.language_model import LanguageModelConfig

EXAMPLES = """\
examples:
  xlstm eval synthetic --task parity
  xlstm eval synthetic --task cycle_nav --models "[0:1],llama" --seed 1 --steps 3000

Tasks: parity, even_pairs, cycle_nav, mod_arith. Each model is trained on rows of 3 to 40 tokens and tested on rows of
40 to 256; parity takes all four models two minutes or so on two cores. The folder gets result.json and accuracy.png.
"""

_RECIPE = ("steps", "lr", "batch_size", "train_lengths", "test_lengths", "test_rows", "short_share", "patience")
"""Options that change the recipe of every model."""


def _lengths(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not two lengths, as in 3-40")
    return int(match[1]), int(match[2])


@dataclass
class SyntheticOptions:
    """What is trained; None leaves a value to the recipe.

    Raises:
        ConfigError: for a task, a seed or a width that cannot be.
    """

    task: str = option("TASK", "the formal language")
    models: str = option("LIST", "default: [0:1],[1:0],[1:1],llama", default="[0:1],[1:0],[1:1],llama")
    seed: str = option("LIST", "of parameters and rows; several train each model as often", default="0")
    steps: int | None = option("N", "at most (default: by the task)", read=int, default=None)
    lr: float | None = option("X", "learning rate at its peak (default: by the model)", read=float, default=None)
    batch_size: int | None = option("N", "rows in a step (default 64)", read=int, default=None)
    dim: int = option("N", "width of the models (default 32)", read=int, default=32)
    train_lengths: tuple[int, int] | None = option(
        "A-B", "tokens in rows of training (default 3-40)", read=_lengths, default=None
    )
    test_lengths: tuple[int, int] | None = option(
        "A-B", "tokens in rows of the test (default 40-256)", read=_lengths, default=None
    )
    test_rows: int | None = option("N", "rows of the test (default 1024)", read=int, default=None)
    short_share: float | None = option(
        "X", "share of the steps, from the first, with rows of 10 at most", read=float, default=None
    )
    patience: int | None = option("N", "end early after N flawless evals in a row (default 4)", read=int, default=None)

    def __post_init__(self) -> None:
        from xlstm_jax.evaluation.synthetic.tasks import get_task

        self.task = get_task(self.task).name
        if not all(word.strip().isdigit() for word in self.seed.split(",")):
            raise ConfigError(f"--seed is {self.seed!r}, but must be whole numbers >= 0, separated by commas")
        if self.dim < 2 or self.dim % 4:
            raise ConfigError(f"--dim is {self.dim}, but must be a multiple of 4")


@dataclass(frozen=True)
class _Trial:
    """One model to train, with one seed."""

    model: str
    config: SyntheticConfig
    model_config: LanguageModelConfig


def _trials(options: SyntheticOptions, task: Task) -> Iterator[_Trial]:
    from xlstm_jax.evaluation.synthetic.recipes import MODELS, synthetic_model, synthetic_recipe

    names = {re.sub(r"^(xlstm)?\[?(\d:\d)\]?$", r"[\2]", name.strip().lower()) for name in options.models.split(",")}
    changes = {name: getattr(options, name) for name in _RECIPE}
    for name in sorted(names, key=lambda name: MODELS.index(name) if name in MODELS else -1):
        for seed in map(int, options.seed.split(",")):
            config = synthetic_recipe(name, task.name, seed=seed, **changes)
            yield _Trial(name, config, synthetic_model(name, task, options.dim, config.train_lengths[1]))


def run(options: SyntheticOptions, progress: Progress, before: Record) -> Iterator[Record]:
    """Train and test every model with every seed; see `Suite.run`."""
    from xlstm_jax.evaluation.synthetic.tasks import get_task

    task = get_task(options.task)
    return _records(task, list(_trials(options, task)), progress)


def _records(task: Task, trials: list[_Trial], progress: Progress) -> Iterator[Record]:
    from xlstm_jax.evaluation.synthetic.published import SETTING, SOURCE
    from xlstm_jax.evaluation.synthetic.training import train_synthetic

    progress.say(f"{task.name}: {task.question}")
    results: list[Record] = []
    for trial in trials:
        steps = trial.config.steps
        with progress.bar(f"{_title(trial.model)} seed {trial.config.seed}", steps) as bar:
            bar.to(0, "compiling")

            def report(look: Look, bar: Bar = bar, steps: int = steps) -> None:
                standing = f"loss {look.loss:.4f}  accuracy at lengths of training {look.accuracy:.3f}"
                bar.to(look.step, f"step {look.step}/{steps}  {standing}")

            result = train_synthetic(trial.model_config, trial.config, report)
        results.append(_result(task, trial, result))
        yield {
            "task": task.name,
            "chance": task.chance,
            "results": results,
            "published": {"source": SOURCE, "setting": SETTING, "unit": "per cent"},
        }


def _result(task: Task, trial: _Trial, result: SyntheticResult) -> Record:
    from xlstm_jax.evaluation.synthetic.published import published

    beside = published(task.name, trial.model)
    return {
        "model": trial.model,
        "seed": trial.config.seed,
        "scaled_test_accuracy": task.scaled(result.test_accuracy),
        "published": None if beside is None else beside._asdict(),
        **result.to_dict(),
        "config": to_json(trial.config),
        "model_config": to_json(trial.model_config),
    }


def _title(model: str) -> str:
    return "Llama" if model == "llama" else f"xLSTM{model}"


def draw(record: Record, path: Path) -> None:
    """Accuracy over the length of the rows, a curve for each model and seed."""
    from xlstm_jax.report.length_plot import plot_accuracy

    results = record["results"]
    several = len({result["seed"] for result in results}) > 1
    curves: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        name = _title(result["model"]) + (f", seed {result['seed']}" if several else "")
        bins = [*result["train_bins"], *result["test_bins"]]
        curves[name] = [((entry["low"] + entry["high"]) / 2, entry["accuracy"]) for entry in bins]
    trained_to = results[0]["config"]["train_lengths"][1]
    plot_accuracy(curves, path, title=record["task"], chance=record["chance"], trained_to=trained_to)


def tabulate(record: Record) -> tuple[Table, str]:
    """A row for each model and seed, the published accuracy beside the measured one."""
    from rich import box
    from rich.table import Table

    config = record["results"][0]["config"]
    trained, tested = ("{}-{}".format(*config[name]) for name in ("train_lengths", "test_lengths"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    for title in ("seed", "params", "steps", "time", trained, tested, "scaled", "published"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in record["results"]:
        beside = result["published"]
        table.add_row(
            _title(result["model"]),
            str(result["seed"]),
            f"{result['parameters']:,}",
            str(result["steps"]),
            f"{result['seconds']:.0f} s",
            f"{result['train_accuracy']:.1%}",
            f"[b]{result['test_accuracy']:.1%}[/b]",
            f"{result['scaled_test_accuracy']:.3f}",
            "-" if beside is None else f"{beside['mean']:.1f}% ± {beside['deviation']:.1f}",
        )
    published = record["published"]
    return table, (
        f"{trained}, {tested}: accuracy at these lengths; time: training without compilation. Guessing has "
        f"{record['chance']:.1%}, which scales to 0. Published: accuracy of {published['source']}, with other sizes "
        f"and steps ({published['setting']})."
    )


SUITE = Suite(
    name="synthetic",
    summary="train tiny models on a formal language and test them at greater lengths",
    config=SyntheticOptions,
    run=run,
    table=tabulate,
    picture=draw,
    picture_name="accuracy.png",
    folder="synthetic-{task}",
    examples=EXAMPLES,
)
