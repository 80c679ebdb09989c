"""How a cell shows what it does: in a collection of variables that is filled only where a call makes it mutable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn

DIAGNOSTICS = "diagnostics"
"""The name of the collection."""


def keep_trace(module: nn.Module, trace: Callable[[], Any]) -> None:
    """Make the trace and keep it as the module's `trace`, in a call that made the collection mutable; not in `init`."""
    if not module.is_initializing():
        module.sow(DIAGNOSTICS, "trace", trace(), reduce_fn=lambda _, new: new, init_fn=lambda: None)
