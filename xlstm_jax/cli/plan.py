"""`xlstm plan`: what an experiment will cost, before it costs anything."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from xlstm_jax.cli.field_help import fields_help
from xlstm_jax.cli.names import find_experiment
from xlstm_jax.cli.parser import ExperimentParser, fitted
from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.cost.exchanges import ALIASES, CHIPS, Chip
from xlstm_jax.cost.plan import Compile, Plan, plan
from xlstm_jax.files import bytes_in_words
from xlstm_jax.machine.progress import clock
from xlstm_jax.presets import preset_names, preset_summary

MOST_DEVICES = 4096
"""More are simulated slowly, and say nothing that fewer do not."""


def main(argv: Sequence[str]) -> int:
    """See `usage`; returns the exit code."""
    parser = ExperimentParser("plan")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-compile", action="store_const", const="no", dest="compile")
    parser.add_argument("--exact", action="store_const", const="exact", dest="compile")
    parser.add_argument("--mesh")
    parser.add_argument("--devices")
    parser.add_argument("--chip")
    call = parser.parse_with_fields(argv)
    if call.target is None:
        print(usage()) if call.help else _print_presets(call.json)
        return 0
    devices = None if call.devices is None else _count(call.devices)
    chip = _chip(call.chip or "H100") if devices or call.chip else None
    _leave_accelerators_alone(devices)
    found = find_experiment(call.target)
    found = found.on_mesh(call.mesh or ("dp=-1" if devices and found.experiment.model.parallel is None else None))
    if found.note is not None:
        print(f"note: {found.note}", file=sys.stderr)
    experiment = found.changed(call.fields)
    if call.help:
        print(f"{usage()}\n\nall fields, with the values of {call.target}:\n\n{fields_help(experiment)}")
        return 0
    compile: Compile = call.compile or "blocks"
    with clock(f"planning {call.target}", terminal_only=True):
        result = plan(experiment, compile, chip)
    name = found.name or call.target
    if call.json:
        print(json.dumps({"name": name} | result.to_dict(), indent=2))
    else:
        _print_plan(name, result, Console(highlight=False))
    return 0


def usage() -> str:
    """The help."""
    return fitted(
        "usage: xlstm plan PRESET|RUN|FILE [PATH=VALUE ...] [--no-compile | --exact] [--json]\n"
        "       xlstm plan\n\n"
        "Parameters, operations and memory of an experiment: nothing is trained, no weight is made and no accelerator\n"
        "used. The training step is compiled from shapes alone, for the processor, to see what it needs beside its\n"
        "state: on an accelerator that is an estimate. Without an argument: the presets. Fields are those of\n"
        "`xlstm train`; memory depends most on --batch_size, --accumulate and --context_length.\n\n"
        "  --devices N   how many devices there are; sizes are then those of one of them. Beside them stands what\n"
        "                they exchange in a step, as compiled for the processor, which widens bfloat16\n"
        "  --mesh AXIS=N,..  how it is parted over them, as for `xlstm train`: --devices 256 --mesh fsdp=32,tp=8\n"
        f"  --chip NAME   which they are, for times and memory: {', '.join((*CHIPS, *ALIASES))} (default H100)\n"
        "  --no-compile  leave the compilation out; memory for training is then a lower bound\n"
        "  --exact       compile the very step; without it, blocks that the model does not scan over are compiled as\n"
        "                a scan, for a mix once for each kind, which takes seconds where --exact takes minutes\n"
        "                and, for the processor, knows nothing of recomputation (remat)\n"
        "  --json        print JSON: params, params_by_part, flops_per_token_forward, flops_per_token_training,\n"
        "                tokens_per_step, steps, tokens, flops, state_bytes; in bytes training.{weights, gradients,\n"
        "                optimizer, temporaries, total, fits}, training.{devices, mesh, exchanges, exchange_seconds,\n"
        "                compute_seconds, exchange_share}, serving.{weights, state_per_sequence, total, fits} and\n"
        "                device.{name, total, free}; null for what is not known"
    )


def _leave_accelerators_alone(devices: int | None) -> None:
    """Let JAX see the processor alone, as so many devices: somebody may be training on the accelerator."""
    import jax

    # Not by the variable JAX_PLATFORMS, which tells what the device at hand is.
    jax.config.update("jax_platforms", "cpu")
    if devices is not None:
        with contextlib.suppress(RuntimeError):  # JAX has begun already
            jax.config.update("jax_num_cpu_devices", devices)
        if jax.device_count() != devices:
            raise ConfigError(f"--devices is {devices}, but JAX has begun with {jax.device_count()}")


def _count(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= MOST_DEVICES:
        raise ConfigError(f"--devices is {word!r}, but must be a whole number from 1 to {MOST_DEVICES}")
    return int(word)


def _chip(word: str) -> Chip:
    name = ALIASES.get(word, word)
    if name not in CHIPS:
        known = (*CHIPS, *ALIASES)
        raise ConfigError(f"--chip is {word!r}{near_miss(word, known)}, but must be one of {', '.join(known)}")
    return CHIPS[name]


def _print_presets(as_json: bool) -> None:
    summaries = {name: preset_summary(name) for name in preset_names()}
    if as_json:
        print(json.dumps(summaries, indent=2))
        return
    width = max(map(len, summaries))
    lines = "\n".join(f"  {name:{width}}  {summary}" for name, summary in summaries.items())
    print(fitted(f"presets:\n{lines}\n\nwhat one costs: xlstm plan PRESET"))


def _print_plan(name: str, result: Plan, console: Console) -> None:
    console.print(f"[bold]{name}[/bold]: {result.params:,} parameters", soft_wrap=True)
    _print_rows(
        console,
        ("part", "parameters", "share"),
        [(part, f"{count:,}", f"{count / result.params:.1%}") for part, count in result.params_by_part.items()],
    )
    training = result.training
    console.print(
        f"{result.flops_per_token_forward / 1e9:,.4g} GFLOP a token forward, "
        f"{result.flops_per_token_training / 1e9:,.4g} in training, at {training.seq_len:,} tokens a row; "
        f"{result.steps:,} steps of {result.tokens_per_step:,} tokens make {result.flops:.2e} FLOP",
        soft_wrap=True,
    )
    console.print(f"state of a sequence: {bytes_in_words(result.state_bytes)}", soft_wrap=True)
    rows = [
        ("weights (float32)", bytes_in_words(training.weights)),
        ("gradients", bytes_in_words(training.gradients)),
        ("optimizer state", bytes_in_words(training.optimizer)),
    ]
    if training.temporaries is not None:
        rows.append(("activations and temporaries", bytes_in_words(training.temporaries)))
    known = training.temporaries is not None
    rows.append(("together" if known else "at least", bytes_in_words(training.total)))
    where = "" if training.devices == 1 else f", on each of {training.devices} devices ({training.mesh})"
    _print_rows(console, (f"training, {training.device_rows} rows at once{where}", "memory"), rows)
    compiled = f"{training.compiled} took {training.compile_seconds:.1f} s to compile" if known else training.compiled
    console.print(compiled, soft_wrap=True)
    _print_exchanges(result, console)
    serving = [("weights (float32)", bytes_in_words(result.serving.weights))]
    for batch, size in result.serving.total.items():
        serving.append((f"with the state of {batch} sequence{'s' if batch > 1 else ''}", bytes_in_words(size)))
    _print_rows(console, ("serving", "memory"), serving)
    console.print(_verdict(result), soft_wrap=True)


def _print_rows(console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table()
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_exchanges(result: Plan, console: Console) -> None:
    """What the devices exchange in a step, and how long that and the products take."""
    training = result.training
    if training.exchanges:
        rows = [(x.kind, f"{x.group}", f"{x.count:,}", bytes_in_words(x.bytes)) for x in training.exchanges]
        _print_rows(console, ("exchanged in a step", "devices", "times", "results on a device"), rows)
    if training.compute_seconds is None:
        return
    products = f"products take {training.compute_seconds:.3g} s a step at half the speed of {result.device.name}"
    if training.exchange_seconds is None or not training.exchanges:
        console.print(products, soft_wrap=True)
        return
    console.print(
        f"{products}, exchanges at least {training.exchange_seconds:.3g} s at the speed of its links: "
        f"{training.exchange_share:.0%} of the step, less what is done meanwhile",
        soft_wrap=True,
    )


def _verdict(result: Plan) -> str:
    """Whether the device at hand has enough memory, in a sentence or two."""
    device = result.device
    if device.total is None:
        return f"{device.name} does not tell how much memory it has"
    free = "" if device.free is None else f" ({bytes_in_words(device.free)} free now)"
    fits = [batch for batch, size in result.serving.total.items() if result.fits(size)]
    serving = f"enough to serve {fits[-1]} at once" if fits else "too little to serve it"
    training = {
        True: "enough to train it",
        False: "[bold red]too little to train it[/bold red]: fewer rows at once (--accumulate) or a smaller model "
        "needs less",
        None: "whether it can train this shows without --no-compile",
    }[result.training_fits]
    return f"{device.name} has {bytes_in_words(device.total)}{free}: {serving}, {training}"
