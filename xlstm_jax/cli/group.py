"""The part of a command line, and of its end, that says to which group of processes this one belongs."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

from xlstm_jax.distributed.processes import Processes, join, leave
from xlstm_jax.distributed.start import Start, found_in
from xlstm_jax.distributed.watch import wait_for_the_others
from xlstm_jax.machine.signals import EXIT_INTERRUPT
from xlstm_jax.machine.streams import flush, keep_to_python

VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}
"""Options and the environment variables that they stand for."""


def add_group_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of `VARIABLES`."""
    for option in VARIABLES:
        parser.add_argument(f"--{option}")


def start_of(call: argparse.Namespace) -> Start | None:
    """How this process finds its group, by the command line or the environment; None for one alone.

    Raises:
        ConfigError: for values that say it by halves.
    """
    given = {name: getattr(call, option) for option, name in VARIABLES.items()}
    return found_in({**os.environ, **{name: value for name, value in given.items() if value is not None}})


@contextlib.contextmanager
def in_group(start: Start | None, silent_seconds: float) -> Iterator[Processes]:
    """Join the group, and part from it in the end. After an error this process is left from here, for Python's own end
    would wait for the others."""
    if start is not None:
        from xlstm_jax.distributed.launch.local import follow_launcher

        follow_launcher(os.environ)
    processes = join(start, silent_seconds)
    if processes.count > 1:
        keep_to_python()
    try:
        yield processes
        leave()
    except BaseException as error:
        if processes.count == 1:
            raise
        sentence, code = _explained(error)
        processes.tell_failure(sentence, code)
        with contextlib.suppress(OSError):
            who = "" if processes.leader else f"{processes.name}: "
            print(f"xlstm: {who}{sentence}", file=sys.stderr)
            flush(sys.stdout, "standard output")
            flush(sys.stderr, "standard error")
        wait_for_the_others(processes)
        os._exit(code)


def _explained(error: BaseException) -> tuple[str, int]:
    """A sentence for an error and the exit code; one of ours is shown as a traceback, too."""
    from xlstm_jax.cli import exit_code, explain

    if isinstance(error, KeyboardInterrupt):
        return "interrupted", EXIT_INTERRUPT
    if isinstance(error, SystemExit):
        return "interrupted", error.code if isinstance(error.code, int) else 1
    if not isinstance(error, Exception):  # the process is being torn down
        return "interrupted", 1
    sentence = explain(error)
    if sentence is None:
        traceback.print_exception(error)
        sentence = f"{type(error).__name__}: {error}"
    return sentence, exit_code(error)
