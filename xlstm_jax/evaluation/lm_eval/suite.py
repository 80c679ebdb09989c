"""`xlstm eval lm-eval RUN --tasks ...`: tasks of the lm-evaluation-harness, which is an extra."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.evaluation.suite import Record, Records, Suite, argument, option
from xlstm_jax.machine.progress import Progress, clock

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """\
examples:
  xlstm eval lm-eval quickstart --tasks text_perplexity last_word --text book.txt
  xlstm eval lm-eval quickstart --tasks phone_book --limit 20
  xlstm eval lm-eval quickstart runs/other --tasks hellaswag,arc_easy --num-fewshot 5
  xlstm eval lm-eval quickstart --tasks mine --include-path tasks

RUN is a run's folder, or NAME for runs/NAME. TASK is a name of the harness (* matches, as in mmlu_*), a YAML file, or
one that needs no download: text_perplexity and last_word are made from --text, phone_book is drawn. The harness fetches
the data of all others. It is installed by: pip install '.[lm-eval]' (in a clone)

keys of --json: lm_eval (its version), tasks, num_fewshot, limit, max_length, add_bos_token, and runs: a list with run,
step, parameters, tokens_read (for questions with answers), and by task results (the harness's keys, as acc,none and
acc_stderr,none), samples, shots, versions, higher_is_better.
"""

PACKAGE = "lm_eval"
BOOTSTRAPS = 1000
"""Resamplings for the errors of metrics that have no formula; the harness's own 100,000 take minutes."""


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


@dataclass
class HarnessOptions:
    """What is asked of which runs.

    Raises:
        ConfigError: for values that cannot be.
    """

    runs: tuple[str, ...] = argument("RUN", "run to evaluate; several are set side by side", names="run")
    tasks: tuple[str, ...] = option("TASK", "names of tasks, groups or tags, or YAML files", several=True)
    num_fewshot: int | None = option("N", "examples before each question (default: the task's)", read=int, default=None)
    limit: int | float | None = option(
        "N", "questions of each task, or a share below 1: for trying out", read=_number, default=None
    )
    include_path: str | None = option("FOLDER", "has YAML files of tasks", default=None)
    text: tuple[str, ...] | None = option(
        "FILE", "texts that text_perplexity and last_word are made from", several=True, default=None
    )
    batch_size: int | None = option("N", "texts side by side, at most (default 16)", read=int, default=None)
    max_length: int | None = option(
        "N",
        "tokens to read of a text, as other models do (default: all; a Transformer's context)",
        read=int,
        default=None,
    )
    add_bos_token: bool = option(
        "BOOL", "open contexts to score as the texts of training (default true)", read=_truth, default=True
    )
    step: int | None = option("N", "use the checkpoint of this step (default: the newest)", read=int, default=None)
    mesh: str | None = option("AXIS=N,...", "lay the model out over devices, as in fsdp=4,tp=2", default=None)
    name: str = field(init=False)
    """Of the folder for the results."""

    def __post_init__(self) -> None:
        self.runs = tuple(dict.fromkeys(self.runs))
        self.tasks = tuple(dict.fromkeys(name for word in self.tasks for name in word.split(",") if name))
        self.name = "+".join(Path(run).resolve().name for run in self.runs)
        if not self.tasks:
            raise ConfigError("--tasks names no task")
        for name, least in (("num_fewshot", 0), ("batch_size", 1), ("max_length", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                option_name = name.replace("_", "-")
                raise ConfigError(f"--{option_name} is {value}, but must be a whole number >= {least}")
        if self.limit is not None and self.limit <= 0:
            raise ConfigError(f"--limit is {self.limit}, but must be above 0")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ConfigError(f"--include-path is {self.include_path}, but there is no such folder")


def run(options: HarnessOptions, progress: Progress, before: Record) -> Records:
    """Evaluate every run on every task; see `Suite.run`."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(
            "the lm-evaluation-harness is not installed; it comes with: pip install '.[lm-eval]' (in a clone)"
        )
    with clock("looking for the tasks", terminal_only=True):
        manager, tasks = _find_tasks(options)
    return _records(options, progress, manager, tasks)


def _find_tasks(options: HarnessOptions) -> tuple[Any, list[Any]]:
    """The harness's manager of tasks, and what it is to load."""
    import logging

    # Before anything of it is imported: what it says on the way is of no use here.
    logging.getLogger(PACKAGE).setLevel(os.environ.get("LMEVAL_LOG_LEVEL", "ERROR").upper())
    from lm_eval.tasks import TaskManager

    from xlstm_jax.evaluation.lm_eval.local import NAMES, local_task

    # Without its own tasks, of which it has thousands of files to read, if that is enough.
    manager = TaskManager(include_path=options.include_path, include_defaults=False)
    others = [word for word in options.tasks if word not in NAMES and not Path(word).is_file()]
    if not all(map(manager.match_tasks, ([word] for word in others))):
        manager = TaskManager(include_path=options.include_path)
    found: list[Any] = []
    for word in options.tasks:
        if word in NAMES:
            found.append(local_task(word, options.text or ()))
        elif word in others:
            names = manager.match_tasks([word])
            if not names:
                known = [*NAMES, *manager.all_tasks]
                raise ConfigError(f"there is no task {word!r}{near_miss(word, known)}; `lm_eval ls tasks` lists all")
            found += names
        else:
            found.append(word)
    return manager, found


def _records(options: HarnessOptions, progress: Progress, manager: Any, tasks: Sequence[Any]) -> Records:
    import lm_eval
    from lm_eval import evaluator

    from xlstm_jax.evaluation.lm_eval.harness import XLSTM
    from xlstm_jax.inference.run import load

    # Its resampling would fork a process that runs JAX.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    # It asks git for a commit, which complains aloud where there is no repository.
    evaluator.get_git_commit_hash = lambda: None
    names = ("num_fewshot", "limit", "max_length", "add_bos_token")
    record = {"lm_eval": lm_eval.__version__, "tasks": list(options.tasks)}
    record |= {name: getattr(options, name) for name in names}
    done: list[dict[str, Any]] = []
    for path in options.runs:
        with clock(f"loading {path}", terminal_only=True):
            run = load(path, options.step, say=lambda sentence: progress.say(f"note: {sentence}"), mesh=options.mesh)
        given = {name: getattr(options, name) for name in ("batch_size", "max_length", "add_bos_token")}
        model = XLSTM(run, **given, progress=progress)
        entry: dict[str, Any] = {"run": path, "step": run.step, "parameters": run.model.param_count}
        entry |= {"results": {}, "samples": {}, "shots": {}, "versions": {}, "higher_is_better": {}}
        done.append(entry)
        for task in tasks:
            with contextlib.redirect_stdout(sys.stderr):  # the record may go to standard output
                found = lm_eval.simple_evaluate(
                    model=model,
                    tasks=[task],
                    num_fewshot=options.num_fewshot,
                    limit=options.limit,
                    bootstrap_iters=BOOTSTRAPS,
                    log_samples=False,
                    task_manager=manager,
                )
            _add(entry, found)
            entry["tokens_read"] = model.tokens_read
            yield {**record, "runs": done}


def _add(entry: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Put what the harness found into the record of a run, as values of JSON."""
    from lm_eval.utils import handle_non_serializable

    def plain(values: Any) -> Any:
        return json.loads(json.dumps(values, default=handle_non_serializable))

    for name, values in {**found["results"], **found.get("groups", {})}.items():
        metrics = {key: value for key, value in values.items() if "," in key}
        if metrics:  # a group may have none of its own
            entry["results"][name] = plain(metrics)
    kinds = {"samples": "n-samples", "shots": "n-shot", "versions": "versions", "higher_is_better": "higher_is_better"}
    for ours, theirs in kinds.items():
        entry[ours] |= plain(found.get(theirs, {}))


def _metrics(entry: Mapping[str, Any]) -> dict[tuple[str, str], tuple[float, float | None]]:
    """(task, metric) -> (value, its standard error, if there is one)."""
    found = {}
    for task, values in entry["results"].items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            title = metric if chosen == "none" else f"{metric}, {chosen}"
            found[task, title] = (float(value), float(error) if isinstance(error, int | float) else None)
    return found


def _titles(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [Path(entry["run"]).name for entry in runs]
    return [name if names.count(name) == 1 else entry["run"] for name, entry in zip(names, runs, strict=True)]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3g}"


def tabulate(record: Record) -> tuple[Table, str]:
    """A line for each metric of a task, a column for each run."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    runs = record["runs"]
    for number, title in enumerate(["task", "metric", "samples", "shots", *_titles(runs)]):
        table.add_column(title, justify="left" if number < 2 else "right")
    found = [_metrics(entry) for entry in runs]
    for task, metric in dict.fromkeys(key for metrics in found for key in metrics):
        samples = runs[0]["samples"].get(task, {}).get("effective", "")
        cells = []
        for metrics in found:
            value, error = metrics.get((task, metric), (None, None))
            cells.append(_shown(value) if error is None else f"{_shown(value)} ± {_shown(error)}")
        table.add_row(task, metric, str(samples), str(runs[0]["shots"].get(task, "")), *cells)
    length = record["max_length"]
    opens = "Each text" if record["add_bos_token"] else "An empty context, and a text of its own,"
    read = "whole, with its state carried" if length is None else f"up to {length:,} tokens"
    return table, (
        f"Numbers of the lm-evaluation-harness {record['lm_eval']}, ± one standard error. {opens} opens with the token "
        f"that opened the texts of training. Texts are read {read}; a Transformer reads its context length at most."
    )


def draw(record: Record, path: Path) -> None:
    """Shares of right answers with their errors; of tasks without any, the first metric."""
    from xlstm_jax.report.task_plot import plot_tasks

    runs = record["runs"]
    found = [_metrics(entry) for entry in runs]
    keys = list(dict.fromkeys(key for metrics in found for key in metrics))
    better = {task: names for entry in runs for task, names in entry["higher_is_better"].items()}
    shares = [(task, metric) for task, metric in keys if better.get(task, {}).get(metric.partition(",")[0])]
    if shares:
        label, chosen = "score, of which more is better", shares
        names = [f"{task}\n{metric}" for task, metric in chosen]
    else:
        label = keys[0][1] if keys else ""
        chosen = [key for key in keys if key[1] == label]
        names = [task for task, _ in chosen]
    points = {
        title: [metrics.get(key, (None, None)) for key in chosen]
        for title, metrics in zip(_titles(runs), found, strict=True)
    }
    plot_tasks(names, points, path, label=label)


SUITE = Suite(
    name="lm-eval",
    summary="tasks of the lm-evaluation-harness, and of texts of your own",
    config=HarnessOptions,
    run=run,
    table=tabulate,
    picture=draw,
    picture_name="tasks.png",
    folder="lm-eval-{name}",
    examples=EXAMPLES,
)
