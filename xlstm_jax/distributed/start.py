"""How a process finds the group that it belongs to, by what those who started it have put into its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Start:
    kind: str
    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


def found_in(environ: Mapping[str, str]) -> Start | None:
    if "JAX_NUM_PROCESSES" not in environ:
        return None
    count, index = int(environ["JAX_NUM_PROCESSES"]), int(environ["JAX_PROCESS_ID"])
    return Start("explicit", environ["JAX_COORDINATOR_ADDRESS"], count, index)
