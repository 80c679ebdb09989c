"""Formats of text files. Each is a file of this folder with a `FORMAT` in it, found by being here."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from xlstm_jax.data.prepare.formats.base import Format

__all__ = ["Format", "format_names", "formats", "get_format"]


@functools.cache
def formats() -> tuple[Format, ...]:
    """All of them, by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if found.name != "base")
    return tuple(importlib.import_module(f"{__name__}.{name}").FORMAT for name in names)


def format_names() -> list[str]:
    """What `PrepareConfig.format` may be, beside `auto`."""
    return [one.name for one in formats()]


def get_format(name: str) -> Format:
    """The format of this name."""
    return next(one for one in formats() if one.name == name)
