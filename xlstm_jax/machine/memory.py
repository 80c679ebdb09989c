"""How much memory the device at hand has, without waking it."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from xlstm_jax.machine.cores import usable_cores

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass
class DeviceMemory:
    """A device and its memory in bytes; None where it does not tell."""

    name: str
    total: int | None
    free: int | None


def device_memory() -> DeviceMemory:
    """The device that JAX would use: the first Nvidia GPU if JAX has its plugin, else the processor.

    JAX's own back ends are not started, so that a GPU in use is left alone.
    """
    return _gpu() or machine_memory()


def _gpu() -> DeviceMemory | None:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
    if (platforms and not platforms.startswith(("cuda", "gpu"))) or not any(map(_is_installed, plugins)):
        return None
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        name, total, free = (part.strip() for part in done.stdout.splitlines()[0].split(","))
        return DeviceMemory(name, int(total) * 2**20, int(free) * 2**20)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def machine_memory() -> DeviceMemory:
    """The memory of the processor, in a container its share."""
    name = f"CPU ({platform.machine()}, {usable_cores()} cores)"
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return DeviceMemory(name, None, None)
    free = _available()
    for path in map(Path, CGROUP_LIMITS):
        # A container's share counts, not the machine's memory; no limit is written as "max" or as a huge number.
        if path.is_file() and (limit := path.read_text().strip()).isdigit():
            total = min(total, int(limit))
    return DeviceMemory(name, total, None if free is None else min(free, total))


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
