"""`xlstm eval synthetic`: tiny models learn a task, and are tested at greater lengths."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_jax.config import ConfigError, to_json
from xlstm_jax.evaluation.suite import Record, Records, Suite, option
from xlstm_jax.machine.progress import Bar, Progress

if TYPE_CHECKING:
    from rich.table import Table

    from xlstm_jax.evaluation.synthetic.protocols import Protocol, Trial
    from xlstm_jax.evaluation.synthetic.task import Task
    from xlstm_jax.evaluation.synthetic.training import Look, SyntheticResult

EXAMPLES = """\
examples:
  xlstm eval synthetic --task parity
  xlstm eval synthetic --task cycle_nav --models "[0:1],llama" --seed 1 --steps 3000

  xlstm eval synthetic --task mqar --models "[1:0],llama,lstm" --task-fields vocab_size=256,pairs=8
  xlstm eval synthetic --task parity --protocol xlstm

Tasks: the formal languages parity, even_pairs, cycle_nav, mod_arith, mod_arith_brackets, solve_equation,
reverse_string, stack_manipulation, bucket_sort, missing_duplicate, odds_first, repetition, set, majority and
majority_count, and with _slice behind the name those that SLiCE has in other sizes; the products of groups s3, s4, a5,
s5, z60 and a4xz5; mqar, copy, ngram_lookup, ngram_lookup_prefix, phone_book, needle and nearest_neighbour. Models:
[0:1], [1:0], [1:1], llama, lstm. Protocols: quick, and those of papers, which take days: xlstm, slice, zoology-fig2.
Formal languages are learnt from rows of 3 to 40 tokens and tested on rows of 40 to 256; parity takes four models two
minutes or so on two cores. The folder gets result.json and accuracy.png.
"""

_CHANGES = ("steps", "batch_size", "dim", "train_lengths", "test_lengths", "test_rows", "short_share", "patience")
"""Options that change a field of the protocol."""


def _lengths(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not two lengths, as in 3-40")
    return int(match[1]), int(match[2])


@dataclass
class SyntheticOptions:
    """What is trained; None leaves a value to the protocol.

    Raises:
        ConfigError: for a task, a seed or a width that cannot be.
    """

    task: str = option("TASK", "the task; all names stand below")
    models: str = option("LIST", "default: [0:1],[1:0],[1:1],llama", default="[0:1],[1:0],[1:1],llama")
    protocol: str = option("NAME", "how it is trained (default quick)", default="quick")
    task_fields: str = option("LIST", "sizes of the task, NAME=VALUE separated by commas", default="")
    seed: str | None = option("LIST", "of parameters and rows; several train each model as often", default=None)
    steps: int | None = option("N", "at most (default: by the task)", read=int, default=None)
    lr: str | None = option(
        "LIST", "peak learning rates, of which validation chooses (default: by the model)", default=None
    )
    batch_size: int | None = option("N", "rows in a step (default 64)", read=int, default=None)
    dim: int | None = option("N", "width of the models (default 32, 64 for mqar)", read=int, default=None)
    train_lengths: tuple[int, int] | None = option(
        "A-B", "tokens in rows of training (default 3-40, or by the task)", read=_lengths, default=None
    )
    test_lengths: tuple[int, int] | None = option(
        "A-B", "tokens in rows of the test (default 40-256, or by the task)", read=_lengths, default=None
    )
    test_rows: int | None = option("N", "rows of the test (default 1024)", read=int, default=None)
    short_share: float | None = option(
        "X", "share of the steps, from the first, with rows of 10 at most", read=float, default=None
    )
    patience: int | None = option("N", "end early after N flawless evals in a row (default 4)", read=int, default=None)

    def __post_init__(self) -> None:
        from xlstm_jax.evaluation.synthetic.protocols import get_protocol
        from xlstm_jax.evaluation.synthetic.recipes import listed_seeds
        from xlstm_jax.evaluation.synthetic.tasks import get_task

        self.task = get_task(self.task).name
        get_protocol(self.protocol)
        self.fields()
        if self.seed is not None:
            listed_seeds("--seed", self.seed)
        self.rates()
        if self.dim is not None and (self.dim < 2 or self.dim % 4):
            raise ConfigError(f"--dim is {self.dim}, but must be a multiple of 4")

    def fields(self) -> dict[str, Any]:
        """What `task_fields` says, each value by the type that the field has.

        Raises:
            ConfigError: for what is no list of NAME=VALUE, or a field or value that the task does not take.
        """
        from xlstm_jax.evaluation.synthetic.tasks import get_task

        found: dict[str, Any] = {}
        for word in filter(None, self.task_fields.split(",")):
            name, equals, text = word.partition("=")
            if not equals:
                raise ConfigError(f"--task-fields has {word!r}, but must be NAME=VALUE, separated by commas")
            try:
                found[name.strip()] = json.loads(text)
            except ValueError:
                found[name.strip()] = text
        get_task(self.task, found)
        return found

    def rates(self) -> tuple[float, ...] | None:
        """The learning rates that `lr` lists.

        Raises:
            ConfigError: for what is no list of numbers.
        """
        try:
            return None if self.lr is None else tuple(map(float, self.lr.split(",")))
        except ValueError:
            raise ConfigError(f"--lr is {self.lr!r}, but must be numbers, separated by commas") from None

    def changed_protocol(self) -> Protocol:
        """The protocol with what the other options change in it."""
        from xlstm_jax.evaluation.synthetic.protocols import get_protocol
        from xlstm_jax.evaluation.synthetic.recipes import listed_seeds

        changes = {name: getattr(self, name) for name in _CHANGES} | {"lrs": self.rates()}
        if self.seed is not None:
            changes["seeds"] = listed_seeds("--seed", self.seed)
        return dataclasses.replace(
            get_protocol(self.protocol), **{name: value for name, value in changes.items() if value is not None}
        )


def run(options: SyntheticOptions, progress: Progress, before: Record) -> Records:
    """Train and test every model with every learning rate and seed; see `Suite.run`."""
    from xlstm_jax.evaluation.synthetic.recipes import listed_models
    from xlstm_jax.evaluation.synthetic.tasks import get_task

    models = listed_models(options.models)
    protocol = options.changed_protocol()
    trials = list(protocol.trials(get_task(options.task), models, options.fields()))
    return _records(protocol, trials, progress)


def _records(protocol: Protocol, trials: list[Trial], progress: Progress) -> Records:
    from xlstm_jax.evaluation.synthetic.protocols import choose
    from xlstm_jax.evaluation.synthetic.published import SOURCES, STATEMENTS
    from xlstm_jax.evaluation.synthetic.tasks import task_fields
    from xlstm_jax.evaluation.synthetic.training import Learner

    task = trials[0].config.build_task()
    progress.say(f"{task.name}: {task.question}")
    results: list[dict[str, Any]] = []
    learner = Learner(trials[0].model_config, trials[0].config)
    for number, trial in enumerate(trials, 1):
        if not learner.learns(trial.model_config, trial.config):
            learner = Learner(trial.model_config, trial.config)
        steps = trial.config.steps
        of = f" ({number} of {len(trials)})" if len(trials) > 1 else ""
        with progress.bar(f"{_title(trial.model)} seed {trial.config.seed}{of}", steps) as bar:
            bar.to(0, "compiling")

            def report(look: Look, bar: Bar = bar, steps: int = steps) -> None:
                standing = f"loss {look.loss:.4f}  accuracy at lengths of training {look.accuracy:.3f}"
                bar.to(look.step, f"step {look.step}/{steps}  {standing}")

            result = learner.train(trial.config.seed, report)
        results.append(_result(task, trial, result))
        for entry, chosen in zip(results, choose(results), strict=True):
            entry["chosen"] = chosen
        sources = {beside["source"] for entry in results for beside in entry["published"]}
        yield {
            "task": task.name,
            "task_fields": task_fields(task),
            "source": task.source,
            "right": task.right,
            "by_position": task.by_position,
            "chance": task.chance,
            "protocol": {
                "name": protocol.name,
                "distance": protocol.distance,
                "differences": list(protocol.differences),
            },
            "results": results,
            "published": {name: source._asdict() for name, source in SOURCES.items() if name in sources},
            "statements": list(STATEMENTS.get(task.name, ())),
        }


def _result(task: Task, trial: Trial, result: SyntheticResult) -> dict[str, Any]:
    from xlstm_jax.evaluation.synthetic.published import published

    return {
        "model": trial.model,
        "seed": trial.config.seed,
        "scaled_test_accuracy": task.scaled(result.test_accuracy),
        "published": [beside._asdict() for beside in published(task, trial.model)],
        **result.to_dict(),
        "config": to_json(trial.config),
        "model_config": to_json(trial.model_config),
    }


def _title(model: str) -> str:
    return {"llama": "Llama", "lstm": "LSTM"}.get(model, f"xLSTM{model}")


def _chosen(record: Record) -> list[Record]:
    return [result for result in record["results"] if result["chosen"]]


def draw(record: Record, path: Path) -> None:
    """Accuracy over the length of the rows, a curve for each model and seed."""
    from xlstm_jax.report.length_plot import plot_accuracy

    results = _chosen(record)
    several = len({result["seed"] for result in results}) > 1
    curves: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        name = _title(result["model"]) + (f", seed {result['seed']}" if several else "")
        bins = [*result["train_bins"], *result["test_bins"]]
        curves[name] = [((entry["low"] + entry["high"]) / 2, entry["accuracy"]) for entry in bins]
    trained_to = results[0]["config"]["train_lengths"][1]
    plot_accuracy(
        curves,
        path,
        title=record["task"],
        chance=record["chance"],
        trained_to=trained_to,
        place="position in the row" if record["by_position"] else "length of the row",
    )


def tabulate(record: Record) -> tuple[Table, str]:
    """A row for each model and seed, all published accuracies beside the measured one."""
    from rich import box
    from rich.table import Table

    results = _chosen(record)
    config = results[0]["config"]
    trained, tested = ("{}-{}".format(*config[name]) for name in ("train_lengths", "test_lengths"))
    letters = {name: "abcdefgh"[number] for number, name in enumerate(record["published"])}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    for title in ("seed", "params", "steps", "time", trained, tested, "scaled", "published"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        beside = [
            f"{entry['mean']:.1f}%{_deviation(entry['deviation'])} {letters[entry['source']]}"
            for entry in result["published"]
        ]
        table.add_row(
            _title(result["model"]),
            str(result["seed"]),
            f"{result['parameters']:,}",
            str(result["steps"]),
            f"{result['seconds']:.0f} s",
            f"{result['train_accuracy']:.1%}",
            f"[b]{result['test_accuracy']:.1%}[/b]",
            f"{result['scaled_test_accuracy']:.3f}",
            "\n".join(beside) or "-",
        )
    what = "rows with all targets right" if record["right"] == "sequence" else "targets"
    lines = [
        f"{trained}, {tested}: accuracy, of {what}, at these lengths; time: training without compilation. Guessing has "
        f"{record['chance']:.1%}, which scales to 0.",
        f"Protocol {record['protocol']['name']}: {record['protocol']['distance']}",
    ]
    rates = {_title(result["model"]): result["config"]["lr"] for result in results}
    if len(record["results"]) > len(results):
        shown = ", ".join(f"{model} {lr:g}" for model, lr in rates.items())
        lines.append(f"Learning rates chosen on validation rows among {len(record['results'])} trainings: {shown}.")
    for name, letter in letters.items():
        source = record["published"][name]
        lines.append(f"Published, {letter}: {source['paper']} ({source['setting']}).")
    return table, "\n".join((*lines, *record["statements"]))


def _deviation(deviation: float | None) -> str:
    return "" if deviation is None else f" ± {deviation:.1f}"


SUITE = Suite(
    name="synthetic",
    summary="train tiny models on a synthetic task and test them at greater lengths",
    config=SyntheticOptions,
    run=run,
    table=tabulate,
    picture=draw,
    picture_name="accuracy.png",
    folder="synthetic-{task}",
    examples=EXAMPLES,
)
