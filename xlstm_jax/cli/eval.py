"""`xlstm eval`: what a model can do, measured."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_jax.cli.parser import Parser
from xlstm_jax.config import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from xlstm_jax.evaluation.synthetic.tasks import Task
    from xlstm_jax.evaluation.synthetic.training import Look, SyntheticConfig, SyntheticResult

RESULT, PICTURE = "result.json", "accuracy.png"

SYNTHETIC_EXAMPLES = """\
examples:
  xlstm eval synthetic --task parity
  xlstm eval synthetic --task cycle_nav --models "[0:1],llama" --seed 1 --steps 3000

Tasks: parity, even_pairs, cycle_nav, mod_arith. Each model is trained on rows of 3 to 40 tokens and tested on rows of
40 to 256; parity takes all four models two minutes or so on two cores. The folder gets result.json and accuracy.png.
"""


def main(argv: Sequence[str]) -> int:
    """Run `xlstm eval ARGV`; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="xlstm eval", description="What a model can do, measured.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="synthetic")
    synthetic = commands.add_parser(
        "synthetic",
        help="train tiny models on a formal language and test them at greater lengths",
        description="Train tiny models on a formal language and test them at greater lengths than those of training.",
        epilog=SYNTHETIC_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    synthetic.set_defaults(run=_synthetic)
    add = synthetic.add_argument
    add("--task", required=True, metavar="TASK", help="the formal language")
    add("--models", default="[0:1],[1:0],[1:1],llama", metavar="LIST", help="default: [0:1],[1:0],[1:1],llama")
    add("--seed", default="0", metavar="LIST", help="of parameters and rows; several train each model as often")
    add("--steps", type=int, metavar="N", help="at most (default: by the task)")
    add("--lr", type=float, metavar="X", help="learning rate at its peak (default: by the model)")
    add("--batch-size", type=int, metavar="N", help="rows in a step (default 64)")
    add("--dim", type=int, default=32, metavar="N", help="width of the models (default 32)")
    add("--train-lengths", type=_lengths, metavar="A-B", help="tokens in rows of training (default 3-40)")
    add("--test-lengths", type=_lengths, metavar="A-B", help="tokens in rows of the test (default 40-256)")
    add("--test-rows", type=int, metavar="N", help="rows of the test (default 1024)")
    add("--short-share", type=float, metavar="X", help="share of the steps, from the first, with rows of 10 at most")
    add("--patience", type=int, metavar="N", help="end early after N flawless looks in a row (default 4)")
    add("--out", metavar="FOLDER", help="for result.json and accuracy.png (default runs/synthetic-TASK)")
    add("--json", action="store_true", help="print the result as JSON; progress goes to standard error")
    return parser


def _lengths(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not two lengths, as in 3-40")
    return int(match[1]), int(match[2])


@dataclasses.dataclass
class _Trial:
    """One model to train, with one seed."""

    model: str
    config: SyntheticConfig
    model_config: Any
    result: SyntheticResult | None = None


def _synthetic(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from xlstm_jax.evaluation.synthetic.tasks import get_task

    task = get_task(arguments.task)
    trials = list(_trials(arguments, task))
    out = Path(arguments.out or Path("runs") / f"synthetic-{task.name}")
    out.mkdir(parents=True, exist_ok=True)

    from xlstm_jax.evaluation.synthetic.training import train_synthetic

    # A pipe has no width; a terminal knows its own.
    stream = sys.stderr if arguments.json else sys.stdout
    console = Console(highlight=False, stderr=arguments.json, width=None if stream.isatty() else 120)
    console.print(f"{task.name}: {task.question}; {task.classes} answers", soft_wrap=True)
    for trial in trials:
        with _Progress(console, trial) as progress:
            trial.result = train_synthetic(trial.model_config, trial.config, progress.look)
        # After each model, so that an interruption leaves what was found.
        record = _record(task, trials)
        _write(out, record, task, trials)
    if arguments.json:
        print(json.dumps(record, indent=2))
    else:
        _print_table(task, trials, console)
    console.print(f"written: {out / RESULT}, {out / PICTURE}", soft_wrap=True)
    return 0


def _trials(arguments: argparse.Namespace, task: Task) -> Iterator[_Trial]:
    """All that is to be trained; every value is checked before anything is."""
    from xlstm_jax.evaluation.synthetic.recipes import MODELS, synthetic_model, synthetic_recipe

    names = [re.sub(r"^(xlstm)?\[?(\d:\d)\]?$", r"[\2]", name.strip().lower()) for name in arguments.models.split(",")]
    seeds = []
    for word in arguments.seed.split(","):
        if not word.strip().isdigit():
            raise ConfigError(f"--seed is {arguments.seed!r}, but must be whole numbers >= 0, separated by commas")
        seeds.append(int(word))
    if arguments.dim < 2 or arguments.dim % 4:
        raise ConfigError(f"--dim is {arguments.dim}, but must be a multiple of 4")
    changes = {
        name: getattr(arguments, name)
        for name in (
            "steps",
            "lr",
            "batch_size",
            "train_lengths",
            "test_lengths",
            "test_rows",
            "short_share",
            "patience",
        )
    }
    for name in sorted(set(names), key=lambda name: MODELS.index(name) if name in MODELS else -1):
        for seed in seeds:
            config = synthetic_recipe(name, task.name, seed=seed, **changes)
            yield _Trial(name, config, synthetic_model(name, task, arguments.dim, config.train_lengths[1]))


class _Progress:
    """How far the training of a model is: a bar on a terminal, a line every few looks anywhere else."""

    LOOKS_PER_LINE = 10

    def __init__(self, console: Console, trial: _Trial) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console, self._name = console, f"{_title(trial.model)} seed {trial.config.seed}"
        self._steps, self._looks = trial.config.steps, 0
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(f"{self._name}: compiling", total=self._steps)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def look(self, look: Look) -> None:
        text = (
            f"{self._name}: step {look.step}/{self._steps}  loss {look.loss:.4f}  "
            f"accuracy at lengths of training {look.accuracy:.3f}"
        )
        self._bar.update(self._task, completed=look.step, description=text)
        self._looks += 1
        if not self._console.is_terminal and (self._looks % self.LOOKS_PER_LINE == 0 or look.step == self._steps):
            self._console.print(text, soft_wrap=True)


def _title(model: str) -> str:
    return "Llama" if model == "llama" else f"xLSTM{model}"


def _record(task: Task, trials: Sequence[_Trial]) -> dict[str, Any]:
    from xlstm_jax.config import to_json
    from xlstm_jax.evaluation.synthetic.published import SETTING, SOURCE, published
    from xlstm_jax.machine.environment import present_environment

    results = []
    for trial in trials:
        if trial.result is None:
            continue
        values = trial.result.to_dict()
        beside = published(task.name, trial.model)
        results.append(
            {
                "model": trial.model,
                "seed": trial.config.seed,
                "scaled_test_accuracy": task.scaled(trial.result.test_accuracy),
                "published": None if beside is None else beside._asdict(),
                **values,
                "config": to_json(trial.config),
                "model_config": to_json(trial.model_config),
            }
        )
    return {
        "task": task.name,
        "chance": task.chance,
        "results": results,
        "published": {"source": SOURCE, "setting": SETTING, "unit": "per cent"},
        "environment": present_environment(),
    }


def _write(out: Path, record: dict[str, Any], task: Task, trials: Sequence[_Trial]) -> None:
    from xlstm_jax.files import write_atomic
    from xlstm_jax.report.length_plot import plot_accuracy

    write_atomic(out / RESULT, json.dumps(record, indent=2) + "\n")
    curves: dict[str, list[tuple[float, float]]] = {}
    several = len({trial.config.seed for trial in trials}) > 1
    for trial in trials:
        if trial.result is None:
            continue
        name = _title(trial.model) + (f", seed {trial.config.seed}" if several else "")
        bins = [*trial.result.train_bins, *trial.result.test_bins]
        curves[name] = [((entry.low + entry.high) / 2, entry.accuracy) for entry in bins]
    trained_to = trials[0].config.train_lengths[1]
    plot_accuracy(curves, out / PICTURE, title=task.name, chance=task.chance, trained_to=trained_to)


def _print_table(task: Task, trials: Sequence[_Trial], console: Console) -> None:
    from rich import box
    from rich.table import Table

    from xlstm_jax.evaluation.synthetic.published import SETTING, SOURCE, published

    config = trials[0].config
    # Narrow enough for a terminal of 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    trained, tested = (f"{low}-{high}" for low, high in (config.train_lengths, config.test_lengths))
    titles = ("seed", "params", "steps", "time", trained, tested, "scaled", "published")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for trial in trials:
        result, beside = trial.result, published(task.name, trial.model)
        assert result is not None
        table.add_row(
            _title(trial.model),
            str(trial.config.seed),
            f"{result.parameters:,}",
            str(result.steps),
            f"{result.seconds:.0f} s",
            f"{result.train_accuracy:.1%}",
            f"[b]{result.test_accuracy:.1%}[/b]",
            f"{task.scaled(result.test_accuracy):.3f}",
            "-" if beside is None else f"{beside.mean:.1f}% ± {beside.deviation:.1f}",
        )
    console.print(table)
    console.print(
        f"{trained}, {tested}: accuracy at these lengths; time: training without compilation. Guessing has "
        f"{task.chance:.1%}, which scales to 0. Published: accuracy of {SOURCE}, with other sizes and steps "
        f"({SETTING}).",
        soft_wrap=True,
    )
    sys.stdout.flush()
