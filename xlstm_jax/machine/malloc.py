"""How the C library treats the memory that XLA's processor back end gives back after each step."""

from __future__ import annotations

import ctypes
import importlib.util
import os

# <malloc.h>, glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for the next step to use again; returns whether that is so.

    XLA takes the temporary arrays of a step as one block and frees it at the end. glibc asks the system for so large a
    block anew each time, and the system clears it page by page while the step runs: half a gigabyte in each step of a
    model with 10M parameters, an eighth of its time on two cores. Told to, glibc leaves the block in its heap, where
    the next step finds it.

    The price: memory that was needed once stays with the process (a fifth more for the small presets), so this is for
    a process that trains. It must come before JAX starts, for a thread that has begun a heap of its own stays with it.

    Nothing is changed where JAX may use another device than the processor, where the user has settled these things
    with glibc's own variables (MALLOC_*, GLIBC_TUNABLES), or on another C library.
    """
    if not _only_processor() or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # One heap for all threads, which alone can grow so far; no block outside of it; nothing of it given back.
    return all(mallopt(option, value) for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)))


def _only_processor() -> bool:
    """Whether JAX can find no other device, told without starting it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    from importlib import metadata  # takes longer than the rest of the command's help

    installed = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    return not installed and not metadata.entry_points(group="jax_plugins")
