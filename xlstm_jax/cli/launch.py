"""`xlstm launch`: a command in several processes, on this machine or a cluster."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlstm_jax.cli.parser import Parser
from xlstm_jax.config import ConfigError

EXAMPLES = {
    "local": """\
examples:
  xlstm launch local --processes 2 --devices 4 -- train quickstart --mesh dp=8

What the first process prints is shown. If one of them fails, all end within seconds, with the reason; the same command
goes on. Ctrl-C saves and stops all.
""",
    "slurm": """\
examples:
  xlstm launch slurm --nodes 4 --gpus 8 --time 24:00:00 -- train mlstm_v1_7b --mesh fsdp=32
  xlstm launch slurm --nodes 2 --gpus 4 --setup 'module load cuda' --dry-run -- train runs/mine

The script is written to xlstm-NAME.sbatch and handed to sbatch. Two minutes before its time is up the run is saved, and
the job goes to the queue again, where the same command goes on with the run; so it does after the failure of a node.
What else sbatch takes can be given in its variables, such as SBATCH_QOS.
""",
    "kubernetes": """\
examples:
  xlstm launch kubernetes --image IMAGE --nodes 4 --gpus 8 --volume-claim CLAIM -- train mlstm_v1_7b --mesh fsdp=32
  xlstm launch kubernetes ... -- train runs/mine | kubectl apply -f -

The YAML is printed, for a cluster that has JobSet (https://jobset.sigs.k8s.io). If a pod fails, all begin anew, and the
same command goes on with the run.
""",
}


MOST = 1024
"""Processes that are started here, and devices of each, at most."""


def main(argv: Sequence[str]) -> int:
    """Run `xlstm launch ARGV`; returns the exit code."""
    words = list(argv)
    split = words.index("--") if "--" in words else len(words)
    arguments = _parser().parse_args(words[:split])
    return arguments.run(arguments, words[split + 1 :])


def _parser() -> argparse.ArgumentParser:
    from xlstm_jax.distributed.launch.kubernetes import KubernetesJob
    from xlstm_jax.distributed.launch.slurm import SlurmJob

    parser = Parser(prog="xlstm launch", description="A command in several processes, here or on a cluster.")
    commands = parser.add_subparsers(required=True, metavar="local|slurm|kubernetes")
    local = _add(commands, "local", "several processes on this machine")
    local.set_defaults(run=_local)
    local.add_argument("--processes", type=int, required=True, metavar="N", help="how many")
    local.add_argument(
        "--devices", type=int, metavar="N", help="devices of each: of the GPUs here, or simulated ones on a CPU"
    )
    slurm = _add(commands, "slurm", "a job of SLURM, with a process on each node")
    slurm.set_defaults(run=_slurm)
    _add_fields(slurm, SlurmJob, leave=("command", "program"))
    slurm.add_argument("--dry-run", action="store_true", help="print the script, and hand nothing in")
    kubernetes = _add(commands, "kubernetes", "a JobSet of Kubernetes, with a process in each pod, as YAML")
    kubernetes.set_defaults(run=_kubernetes)
    _add_fields(kubernetes, KubernetesJob, leave=("command",))
    return parser


def _add(commands: Any, name: str, what: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=what,
        usage=f"xlstm launch {name} [options] -- train ...",
        description=f"{what[:1].upper()}{what[1:]}.",
        epilog=EXAMPLES[name],
    )


def _add_fields(parser: argparse.ArgumentParser, job: type, leave: tuple[str, ...]) -> None:
    """An option for each field of a job, with its text; only those that are given are set."""
    from xlstm_jax.cli.field_help import field_texts
    from xlstm_jax.config import type_hints

    hints, texts = type_hints(job), field_texts(job)
    for field in dataclasses.fields(job):
        if field.name in leave:
            continue
        hint = hints[field.name]
        many = typing.get_origin(hint) is tuple
        options: dict[str, Any] = {"action": "append"} if many else {"type": (*typing.get_args(hint), hint)[0]}
        needed = field.default is dataclasses.MISSING and field.name != "name"
        shown = "" if field.default in (None, (), dataclasses.MISSING) else f" (default {field.default})"
        if field.name == "name":
            shown = " (default: that of the run)"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            required=needed,
            default=argparse.SUPPRESS,
            metavar=field.name.rpartition("_")[2].upper(),
            help=f"{texts[field.name]}{shown}".replace("%", "%%"),
            **options,
        )


def _fields(arguments: argparse.Namespace, job: type) -> dict[str, Any]:
    return {field.name: getattr(arguments, field.name) for field in dataclasses.fields(job) if field.name in arguments}


def _local(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    from xlstm_jax.distributed.launch.local import run_locally

    for option in ("processes", "devices"):
        if (number := getattr(arguments, option)) is not None and not 1 <= number <= MOST:
            raise ConfigError(f"--{option} is {number}, but must be from 1 to {MOST}")
    _name(command)
    program = [sys.executable, "-c", "import sys; from xlstm_jax.cli import main; sys.exit(main())"]
    return run_locally([*program, *command], arguments.processes, arguments.devices)


def _slurm(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    from xlstm_jax.distributed.launch.slurm import SlurmJob, require_sbatch, script, submit
    from xlstm_jax.files import write_atomic

    name = re.sub(r"[^\w.-]+", "-", _name(command)).strip("-.") or "xlstm"
    fields = {"name": name} | _fields(arguments, SlurmJob)
    own = Path(sys.executable).with_name("xlstm")
    if not fields.get("setup") and own.exists():
        fields["program"] = str(own)
    job = SlurmJob(command=tuple(command), **fields)
    if arguments.dry_run:
        print(script(job), end="")
        return 0
    require_sbatch()
    path = Path(f"xlstm-{job.name}.sbatch")
    write_atomic(path, script(job))
    print(f"job {submit(path)} of {path}")
    return 0


def _kubernetes(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    from xlstm_jax.distributed.launch.kubernetes import LONGEST_NAME, KubernetesJob, jobset

    name = re.sub(r"[^a-z0-9]+", "-", _name(command).lower()).strip("-")
    name = (name if name[:1].isalpha() else f"xlstm-{name}")[:LONGEST_NAME].strip("-")
    fields = {"name": name} | _fields(arguments, KubernetesJob)
    job = KubernetesJob(command=tuple(command), **fields)
    if job.volume_claim is None:
        print(
            "note: without --volume-claim a run is lost with its pods, and several pods have no folder in common",
            file=sys.stderr,
        )
    print(jobset(job), end="")
    return 0


def _name(command: Sequence[str]) -> str:
    """The name of the run that a command trains, after a look at whether it can.

    Raises:
        ConfigError: if it cannot: it is another verb, or there is no such preset, option or field.
    """
    if not command:
        raise ConfigError("there is no command to launch; it comes after --, as in -- train quickstart")
    verb, words = command[0], command[1:]
    if verb != "train":
        raise ConfigError(f"the command after -- begins with {verb!r}, but only train runs in several processes")
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"the command has {word!r} in it, which is not UTF-8") from None
    from xlstm_jax.cli.names import find_experiment
    from xlstm_jax.cli.train import parse
    from xlstm_jax.presets import preset_names

    call = parse(words)
    if call.target is None or call.help:
        raise ConfigError("the command after -- trains nothing; it must be train PRESET, train RUN or train FILE")
    # A run or a file may be where the job runs alone; what a preset cannot be is not found out in a queue.
    if call.target in preset_names():
        find_experiment(call.target).on_mesh(call.mesh).changed(call.fields)
    return Path(call.fork or call.run or call.target.removesuffix(".py").removesuffix(".json")).name
