"""Several processes of one command on this machine, which end together.

The output of the process 0 is that of the whole; the others' is kept, and its last lines are shown if one of them is
the first to fail. Signals are passed on to all. Should this process be killed, the others see the end of a pipe that
it holds, and save and stop as after SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from xlstm_jax.config import ConfigError
from xlstm_jax.machine.cores import usable_cores
from xlstm_jax.machine.signals import EXIT_CODES

LAST_LINES = 20
POLL_SECONDS = 0.1
END_SECONDS = 10.0
"""After one process has failed, the others may end by themselves for so long."""
LIFELINE = "XLSTM_LIFELINE"
"""In the environment of a process: the end of a pipe that is read from until its launcher is gone."""


def run_locally(command: Sequence[str], processes: int, devices: int | None) -> int:
    """Run a command in several processes; the exit code of the first that fails, or 0.

    Args:
        command: with its arguments.
        processes: how many.
        devices: of each: on a CPU simulated ones, of several GPUs the next so many. If None, an equal share of the
            GPUs, or what JAX finds.

    Raises:
        ConfigError: if the GPUs cannot be shared out equally.
    """
    gpus = visible_gpus(os.environ)
    if devices is None and gpus:
        if gpus % processes:
            raise ConfigError(
                f"--processes is {processes}, but the {gpus} GPUs cannot be shared out equally (--devices N: N each)"
            )
        devices = gpus // processes
    lifeline, held = os.pipe()
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="xlstm-launch-") as folder:
        logs = [Path(folder, str(index)) for index in range(processes)]
        started: list[subprocess.Popen[bytes]] = []
        with _Passed(started):
            for index, log in enumerate(logs):
                env = environment(os.environ, index, processes, port, devices) | {LIFELINE: str(lifeline)}
                with contextlib.nullcontext() if index == 0 else log.open("wb") as out:
                    started.append(
                        subprocess.Popen(
                            command,
                            env=env,
                            stdin=subprocess.DEVNULL,
                            stdout=out,
                            stderr=subprocess.STDOUT if out else None,
                            pass_fds=(lifeline,),
                            start_new_session=True,  # Ctrl-C comes once to each, from here
                        )
                    )
            os.close(lifeline)
            first = _wait(started)
            code = _code(started[first].returncode) if first is not None else 0
            said = first == 0 and started[0].returncode > 0  # why, before our eyes
            if first is not None and not said and code not in EXIT_CODES.values():  # all were asked to stop
                _tell(first, started[first].returncode, logs[first])
    os.close(held)
    return code


def visible_gpus(environ: Mapping[str, str], driver: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """How many GPUs of NVIDIA a process with this environment would use; 0 if it is told to use something else."""
    if "cuda" not in (platforms := environ.get("JAX_PLATFORMS", "")) and "gpu" not in platforms and platforms:
        return 0
    there = len(list(driver.iterdir())) if driver.is_dir() else 0
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    return there if listed is None else min(there, len([word for word in listed.split(",") if word.strip()]))


def environment(
    environ: Mapping[str, str], index: int, processes: int, port: int, devices: int | None
) -> dict[str, str]:
    """What tells one process of its place among the others, added to an environment."""
    cores = max(usable_cores() // processes, 1)
    env = {
        **environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
    }
    if devices is not None:
        env["JAX_NUM_CPU_DEVICES"] = str(devices)
        env["JAX_LOCAL_DEVICE_IDS"] = ",".join(str(index * devices + n) for n in range(devices))
        env["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\S+", "", env.get("XLA_FLAGS", "")).strip()
    if "NPROC" not in env:
        # XLA's threads: not those of all cores in each process, but never fewer than its devices wait with.
        env["NPROC"] = str(max(cores, 2 * (devices or 1), 4))
    return env


class _Passed:
    """As a context, passes signals on to processes that are started in it."""

    def __init__(self, started: list[subprocess.Popen[bytes]]) -> None:
        self._started = started

    def __enter__(self) -> _Passed:
        self._before = {number: signal.signal(number, self._arrived) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:  # an error of ours leaves nobody behind
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; the number of the first that has failed. The others then get `END_SECONDS`."""
    first, deadline = None, None
    while any(process.poll() is None for process in started):
        if first is None:
            first = next((n for n, process in enumerate(started) if process.poll()), None)
        if first is not None and deadline is None:
            deadline = time.monotonic() + END_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for process in started:
                process.kill()
        time.sleep(POLL_SECONDS)
    return next((n for n, process in enumerate(started) if process.returncode), None) if first is None else first


def _tell(index: int, code: int, log: Path) -> None:
    """Say which process was the first to end, and how."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"
    if log.exists() and (lines := log.read_bytes().decode(errors="replace").splitlines()):
        print(f"the last lines of process {index}:", *lines[-LAST_LINES:], sep="\n  ", file=sys.stderr)
    print(f"xlstm: process {index} {how}, so all have ended; the same command goes on", file=sys.stderr)


def _code(returned: int) -> int:
    return 128 - returned if returned < 0 else returned


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def follow_launcher(environ: Mapping[str, str]) -> None:
    """In a launched process: stop as after SIGTERM when the launcher is gone."""
    import threading

    if (number := environ.get(LIFELINE)) is None:
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(int(number), 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="lifeline").start()
