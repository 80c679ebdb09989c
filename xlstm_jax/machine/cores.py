"""How many cores this process has, which is not what the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def allowed_cores() -> int:
    """CPU cores that this process may run on (its affinity), which is what XLA sizes its thread pool by."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def usable_cores() -> int:
    """CPU cores whose time this process gets: those that it may run on, within its container's share."""
    share = _share()
    return allowed_cores() if share is None else max(1, min(allowed_cores(), math.ceil(share)))


def _share() -> float | None:
    """Cores' worth of time that the control group allows; None for no limit, or no such groups."""
    try:
        if (CGROUP / "cpu.max").is_file():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        share = float(quota) / float(period)  # no limit is the word "max", or -1
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None
