"""Formats of text files. Each is a file of this folder with a `FORMAT` in it, found by being here."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from xlstm_jax.data.prepare.formats.base import Format

__all__ = ["Format", "formats"]


@functools.cache
def formats() -> dict[str, Format]:
    """All of them by name, which is what `PrepareConfig.format` may be, beside `auto`."""
    files = sorted(found.name for found in pkgutil.iter_modules(__path__) if found.name != "base")
    listed = [importlib.import_module(f"{__name__}.{name}").FORMAT for name in files]
    return {one.name: one for one in listed}
