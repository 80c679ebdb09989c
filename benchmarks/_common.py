"""What the benchmarks share: the record of where they ran, timing in turns, the machine's peak, the JSON."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from xlstm_jax.machine.environment import present_environment
from xlstm_jax.machine.peak import matmul_peak

__all__ = ["matmul_peak", "record", "time_in_turns", "write"]


def time_in_turns(functions: Mapping[str, Callable[[], Any]], rounds: int = 7) -> dict[str, dict[str, float]]:
    """Seconds of each function: median, fastest and slowest of the rounds.

    Each round calls every function once, so that what disturbs the machine for a while disturbs all of them. One call
    of each comes before, for compilation.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - start)
    return {
        name: {"median": statistics.median(taken), "fastest": min(taken), "slowest": max(taken)}
        for name, taken in times.items()
    }


def record(results: Any) -> dict[str, Any]:
    """Results with the command, versions, commit and hardware that they came from."""
    command = shlex.join(["python", *sys.argv])
    date = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"command": command, "date": date, "environment": present_environment(), "results": results}


def write(results: Any, path: str | None) -> None:
    """Write `record(results)` as JSON, if a path is given."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(record(results), indent=2) + "\n")
