"""What a run's numbers depend on beside its config: versions, cores, devices."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from xlstm_jax.machine.cores import allowed_cores

# Why each entry matters, for the sentence that announces a change. XLA splits sums over its threads and picks other
# instructions on other processors, so these decide the last bits; the rest can change results only with the code.
_NAMES = {
    "jaxlib": "jaxlib",
    "jax": "jax",
    "cores": "the number of usable CPU cores",
    "nproc": "NPROC (the size of XLA's thread pool)",
    "xla_flags": "XLA_FLAGS",
    "processor": "the processor",
    "platform": "the device platform",
    "device_kind": "the device kind",
    "device_count": "the number of devices",
    "mesh": "the mesh",
    "x64": "jax_enable_x64",
    "matmul_precision": "jax_default_matmul_precision",
    "python": "Python",
    "version": "xlstm-jax",
    "commit": "the commit of xlstm-jax",
}


ONE_DEVICE = "one device"
"""What a mesh of one device is called."""


def present_environment(mesh: str = ONE_DEVICE) -> dict[str, Any]:
    """The record of this process, as JSON values. Starts JAX's back end if that has not happened yet."""
    import jax

    device = jax.devices()[0]
    settings: Any = jax.config  # its options are attributes that type checkers do not see
    return {
        "jaxlib": metadata.version("jaxlib"),
        "jax": metadata.version("jax"),
        "cores": allowed_cores(),
        "nproc": os.environ.get("NPROC"),
        "xla_flags": os.environ.get("XLA_FLAGS") or None,
        "processor": _processor(),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "mesh": mesh,
        "x64": bool(settings.jax_enable_x64),
        "matmul_precision": settings.jax_default_matmul_precision,
        "python": platform.python_version(),
        "version": installed_version("xlstm-jax") or "unknown",
        "commit": _package_commit(),
    }


def environment_changes(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """One sentence for each entry that differs; empty if a continued run repeats its numbers bit for bit."""
    return [
        f"{_NAMES.get(key, key)} was {_shown(recorded[key])} when this run was last trained and is "
        f"{_shown(present.get(key))} now, so the numbers need not repeat bit for bit"
        for key in recorded
        if key in present and recorded[key] != present[key]
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _package_commit() -> str | None:
    """The commit of the working copy that this package runs from, None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # else git would name a repository that an installation happens to lie in
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)
