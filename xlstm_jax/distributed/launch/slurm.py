"""A command as a job of SLURM: the script, and handing it in."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from xlstm_jax.config import Config, ConfigError, PositiveInt

SECONDS_TO_SAVE = 120
"""So long before its time is up a job is told to stop."""
TIME_IS_UP = 140
"""The exit code of a run that SIGUSR2, which is 12 on Linux, has stopped: it is saved."""


class SlurmError(RuntimeError):
    """SLURM is not there, or does not take a job."""


@dataclass(frozen=True)
class SlurmJob(Config):
    """What SLURM has to know."""

    command: tuple[str, ...]
    """The verb of `xlstm` and what comes after it."""
    name: str
    """Name of the job."""
    program: str = "xlstm"
    """The command that has the verb."""
    nodes: PositiveInt = 1
    """Machines, with a process each."""
    gpus: PositiveInt | None = None
    """GPUs of each node, all of which its process uses."""
    cpus: PositiveInt | None = None
    """Cores of each node."""
    time: str | None = None
    """How long the job may take, as sbatch wants it: 12:00:00, or 2-00:00:00 for two days."""
    partition: str | None = None
    """Partition to run in."""
    account: str | None = None
    """Account that pays."""
    output: str = "%x-%j.out"
    """File for what is printed; sbatch knows %x as the job's name and %j as its number."""
    setup: tuple[str, ...] = ()
    """Shell line to run first, such as 'module load cuda'; may be given several times. With it xlstm is looked for in
    PATH, without it is the one that is running now."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("name", "time", "partition", "account", "output"):
            value = getattr(self, field)
            if value is not None and (not value.strip() or not value.isprintable()):
                raise ConfigError(f"{type(self).__name__}.{field} is {value!r}, but must be one line of text")
        if "/" in self.name:
            raise ConfigError(f"{type(self).__name__}.name is {self.name!r}, but must be a name without /")


def script(job: SlurmJob) -> str:
    """The text for `sbatch`."""
    node: dict[str, str | int | None] = {"ntasks-per-node": 1, "gpus-per-node": job.gpus, "cpus-per-task": job.cpus}
    asked = {
        "job-name": job.name,
        "nodes": job.nodes,
        **node,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "output": job.output,
        "open-mode": "append",
        "signal": f"USR2@{SECONDS_TO_SAVE}",
    }
    # What is asked of a node is said again for the step: `srun` does not take over the cores by itself.
    step = ["srun", "--kill-on-bad-exit=1", "--unbuffered", f"--nodes={job.nodes}", *_options(node)]
    sees = "" if job.gpus is None else f", which sees {_all_gpus(job.gpus)} of it"
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in [*_options(asked), "--requeue"]),
        "",
        "set -e",
        *job.setup,
        "",
        f"# One process on each node{sees}. They find each other by the variables of SLURM.",
        "code=0",
        f"{' '.join(step)} \\",
        f"  {shlex.join([job.program, *job.command])} || code=$?",
        f'if [ "$code" -eq {TIME_IS_UP} ]; then',
        "  # The time is nearly up, and the run is saved. The same command goes on with it when its turn comes again.",
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _options(values: dict[str, str | int | None]) -> list[str]:
    return [f"--{name}={shlex.quote(str(value))}" for name, value in values.items() if value is not None]


def _all_gpus(count: int) -> str:
    return "the one GPU" if count == 1 else f"all {count} GPUs"


def require_sbatch() -> None:
    """See that jobs can be handed in here.

    Raises:
        SlurmError: if there is no `sbatch`.
    """
    if shutil.which("sbatch") is None:
        raise SlurmError("there is no sbatch in PATH, which hands in jobs of SLURM; --dry-run prints the script")


def submit(path: Path) -> str:
    """Hand a script in.

    Returns:
        The number of the job.

    Raises:
        SlurmError: if SLURM does not take it.
    """
    require_sbatch()
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SlurmError(f"sbatch does not take {path}: {said}")
    number = re.search(r"\d+", done.stdout)
    return number[0] if number else done.stdout.strip()
