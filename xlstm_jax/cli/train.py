"""`xlstm train`: train a model from a preset or a file, or go on with a run."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from xlstm_jax.cli.field_help import fields_help
from xlstm_jax.cli.group import add_group_options, in_group, start_of
from xlstm_jax.cli.names import existing_run, find_experiment, run_path
from xlstm_jax.cli.parser import ExperimentParser, fitted
from xlstm_jax.config import ConfigError
from xlstm_jax.data.store import open_store
from xlstm_jax.distributed.processes import Processes
from xlstm_jax.presets import get_preset, preset_names, preset_summary
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


def _noted(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def main(argv: Sequence[str]) -> int:
    """See `usage`; returns the exit code."""
    call = parse(argv)
    if call.target is None:
        print(usage())
        if call.help:
            name = preset_names()[0]
            print(f"\nall fields, with the values of {name}:\n\n{fields_help(get_preset(name))}")
        return 0 if call.help else 2
    if call.help:
        print(fields_help(find_experiment(call.target).changed(call.fields)))
        return 0
    start = start_of(call)
    note = _silent if start is not None and start.index else _noted
    experiment, run = _experiment_and_run(call, call.target, note)
    with in_group(start, experiment.training.silent_seconds) as processes:
        if call.fork is not None:
            run = Path(processes.agree(functools.partial(_fork, run, call.fork, experiment)))
        return _train(run, experiment, processes)
    raise AssertionError("unreachable")


def _silent(sentence: str) -> None:
    """For all processes but the leader."""


def _fork(run: Path, name: str, experiment: Experiment) -> str:
    from xlstm_jax.training.fork import fork_run

    console = Console(highlight=False)
    source, copy = RunFolder.open(run), run_path(name)
    fork_run(source, copy, experiment, console.print)
    console.print(f"{copy} goes on from {source}", soft_wrap=True)
    return str(copy)


def usage() -> str:
    """The short help."""
    names = preset_names()
    width = max(map(len, names))
    presets = "\n".join(f"  {name:{width}}  {preset_summary(name)}" for name in names)
    wide = max(len(option) for option, _ in MAIN_OPTIONS)
    options = "\n".join(f"  {option:{wide}}  {text}" for option, text in MAIN_OPTIONS)
    return fitted(
        "usage: xlstm train PRESET|FILE [--run NAME|PATH] [PATH=VALUE ...]\n"
        "       xlstm train RUN         [--fork NAME] [PATH=VALUE ...]\n\n"
        "Train a model from a preset into runs/PRESET, or go on with a run where it was. FILE is a Python file with a\n"
        "function that returns an Experiment, or the config.json of a run, which a new run then begins with.\n"
        f"Ctrl-C saves and stops.\n\npresets:\n{presets}\n\n"
        "  --run NAME|PATH  the run's folder (NAME stands for runs/NAME)\n"
        "  --fork NAME      start a copy of the run from its newest checkpoint; other values may change in it\n"
        "  --mesh AXIS=N,.. part the training over devices: its rows (dp), parameters too (fsdp), the tokens of a row\n"
        "                   (sp), heads (tp); dp takes what the others leave, as in --mesh fsdp=4,tp=2\n"
        "  --coordinator HOST:PORT --processes N --process I\n"
        "                   this is the process I of N that train together, and find each other by an address of the\n"
        "                   process 0; under SLURM and Open MPI this is found out, and `xlstm launch` says it\n"
        "  PATH=VALUE       any field; the end of its path is enough where that is clear. Also --PATH VALUE or\n"
        "                   --set PATH=VALUE. {} switches a sub-config on, null off: model.slstm_block={}\n\n"
        f"often used:\n{options}"
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Take a command line apart: our own options from those that are fields of the experiment.

    Raises:
        ConfigError: for a missing target or value.
    """
    parser = ExperimentParser("train")
    parser.add_argument("--run")
    parser.add_argument("--fork")
    parser.add_argument("--mesh")
    add_group_options(parser)
    return parser.parse_with_fields(argv)


def _experiment_and_run(
    call: argparse.Namespace, word: str, note: Callable[[str], None] = _noted
) -> tuple[Experiment, Path]:
    """The experiment with the call's changes, and the run it is for."""
    for option, name in {"--run": call.run, "--fork": call.fork}.items():
        if name is not None and not name.strip():
            raise ConfigError(f"{option} is {name!r}, but must be the name or the folder of a run")
    target = find_experiment(word).on_mesh(call.mesh)
    if target.run is not None and call.run is not None:
        raise ConfigError(f"{word} is a run itself, so --run {call.run} has no meaning; a copy needs --fork")
    if not (call.run or target.name):
        raise ConfigError(f"{word} gives no name to the new run; --run NAME does")
    experiment, path = target.experiment, target.run or run_path(call.run or target.name)
    if target.note is not None and existing_run(word) != path:
        note(f"note: {target.note}")
    begun = path if call.fork is None and RunFolder(path).exists else None
    changed = target.changed(call.fields, note, begun)
    store = changed.data.store
    if store and store != experiment.data.store and changed.data.sources == experiment.data.sources:
        # Who names a store means that text: if it is missing, that of the preset or run must not take its place.
        opened = open_store(store)
        if target.run is None:
            data = dataclasses.replace(changed.data, sources=())
            if data.tokenizer == experiment.data.tokenizer:
                data = dataclasses.replace(data, tokenizer=opened.tokenizer.kind)
            changed = dataclasses.replace(changed, data=data)
    usual = experiment.training.sample_prompts
    if target.run is None and _text(changed) != _text(experiment) and changed.training.sample_prompts == usual:
        # The preset's prompts are of its own text.
        training = dataclasses.replace(changed.training, sample_prompts=usual and None)
        changed = dataclasses.replace(changed, training=training)
    return changed, path


def _text(experiment: Experiment) -> tuple[Any, ...]:
    return experiment.data.sources, experiment.data.store, experiment.data.mixture


def _train(path: Path, experiment: Experiment, processes: Processes) -> int:
    from xlstm_jax.training.loop import train
    from xlstm_jax.training.open_run import is_finished

    try:
        if processes.agree(lambda: is_finished(RunFolder(path), experiment)):
            if processes.leader:
                steps = max(RunFolder(path).checkpoints(read_only=True).steps())
                print(f"{path} is finished: it has made its {steps} steps (more: --training.steps N)")
            return 0
        return train(path, experiment).exit_code
    except ConfigChangedError as error:
        raise ConfigError(str(error)) from error
