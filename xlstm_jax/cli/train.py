"""`xlstm train`: train a model from a preset, or go on with a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from xlstm_jax.cli.options import apply_options
from xlstm_jax.cli.target import RUNS, find_target, take_values
from xlstm_jax.config import ConfigError
from xlstm_jax.data.store.store import open_store
from xlstm_jax.presets import preset_names, preset_summary
from xlstm_jax.runs.errors import ConfigChangedError
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.config import Experiment

MAIN_OPTIONS = (
    ("--steps N", "training steps"),
    ("--batch_size N", "rows in a step"),
    ("--context_length N", "tokens in a row"),
    ("--lr X", "learning rate at its peak"),
    ("--embedding_dim N, --num_blocks N", "size of the model"),
    ("--sources PATH ...", "text to learn from: files, folders, globs, or stdlib"),
    ("--data.store PATH", "a token store made by `xlstm data prepare`"),
)


@dataclasses.dataclass
class Call:
    """A command line, taken apart."""

    target: str
    run: str | None = None
    fork: str | None = None
    assignments: list[str] = dataclasses.field(default_factory=list)
    options: list[str] = dataclasses.field(default_factory=list)


def main(argv: Sequence[str]) -> int:
    """See `usage`; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        if not argv:
            return 2
        print(f"\nall fields, with the values of {preset_names()[0]}:\n")
        argv = [preset_names()[0], "--help"]
    call = parse(argv)
    experiment, run = _experiment_and_run(call)
    if call.fork is not None:
        from xlstm_jax.training.fork import fork_run

        console = Console(highlight=False)
        source, run = RunFolder.open(run), run_path(call.fork)
        fork_run(source, run, experiment, console.print)
        console.print(f"{run} goes on from {source}", soft_wrap=True)
    return _train(run, experiment)


def usage() -> str:
    """The short help."""
    names = preset_names()
    width = max(map(len, names))
    presets = "\n".join(f"  {name:{width}}  {preset_summary(name)}" for name in names)
    wide = max(len(option) for option, _ in MAIN_OPTIONS)
    options = "\n".join(f"  {option:{wide}}  {text}" for option, text in MAIN_OPTIONS)
    return (
        "usage: xlstm train PRESET [--run NAME|PATH] [--field VALUE ...] [--set PATH=JSON ...]\n"
        "       xlstm train RUN    [--fork NAME] [--field VALUE ...]\n\n"
        "Train a model from a preset into runs/PRESET, or go on with a run where it was.\n"
        f"Ctrl-C saves and stops.\n\npresets:\n{presets}\n\n"
        "  --run NAME|PATH  the run's folder (NAME stands for runs/NAME)\n"
        "  --fork NAME      start a copy of the run from its newest checkpoint; other values may change in it\n"
        "  --set PATH=JSON  any field, or a whole sub-config on (an object) or off (null)\n\n"
        f"often used (a field may be named by its last word where that is clear):\n{options}"
    )


def parse(argv: Sequence[str]) -> Call:
    """Take a command line apart: our own options from those that are fields of the experiment.

    Raises:
        ConfigError: for a missing target or value.
    """
    if argv[0].startswith("-"):
        raise ConfigError(f"xlstm train takes a preset or a run first, but got {argv[0]!r}")
    call = Call(argv[0])
    call.options, taken = take_values(argv[1:], ["--run", "--fork", "--set"])
    for name, value in taken:
        if name == "--set":
            call.assignments.append(value)
        else:
            setattr(call, name[2:], value)
    return call


def run_path(name: str) -> Path:
    """`NAME` -> `runs/NAME`; anything that looks like a path is one."""
    path = Path(name)
    return path if path.is_absolute() or len(path.parts) > 1 or name.startswith(".") else RUNS / name


def _experiment_and_run(call: Call) -> tuple[Experiment, Path]:
    """The experiment with the call's changes, and the run it is for."""
    target = find_target(call.target)
    if target.run is not None and call.run is not None:
        raise ConfigError(f"{call.target} is a run itself, so --run {call.run} has no meaning; a copy needs --fork")
    experiment, path = target.experiment, target.run or run_path(call.run or target.name)
    changed = apply_options(experiment, call.options, call.assignments, prog=f"xlstm train {call.target}")
    store = changed.data.store
    if store and store != experiment.data.store and changed.data.sources == experiment.data.sources:
        # Who names a store means that text: if it is missing, that of the preset or run must not take its place.
        opened = open_store(store)
        if target.run is None:
            data = dataclasses.replace(changed.data, sources=())
            if data.tokenizer == experiment.data.tokenizer:
                data = dataclasses.replace(data, tokenizer=opened.tokenizer.kind)
            changed = dataclasses.replace(changed, data=data)
    return changed, path


def _train(path: Path, experiment: Experiment) -> int:
    from xlstm_jax.training.loop import train

    try:
        return train(path, experiment).exit_code
    except ConfigChangedError as error:
        raise ConfigError(str(error)) from error
