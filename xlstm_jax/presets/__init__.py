"""Named, complete experiments. A preset is a function; its docstring gives command, hardware, time and result."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.presets.quickstart import quickstart, tiny
from xlstm_jax.presets.quickstart_mixed import quickstart_mixed
from xlstm_jax.presets.stdlib import stdlib
from xlstm_jax.training.config import Experiment

_PRESETS: dict[str, Callable[[], Experiment]] = {
    function.__name__: function for function in (quickstart, quickstart_mixed, stdlib, tiny)
}

__all__ = ["get_preset", "preset_names", "preset_summary"]


def preset_names() -> list[str]:
    """The names that `get_preset` takes."""
    return list(_PRESETS)


def get_preset(name: str) -> Experiment:
    """A fresh experiment, free to be changed.

    Raises:
        ConfigError: for a name that no preset has.
    """
    if name not in _PRESETS:
        listed = ", ".join(_PRESETS)
        raise ConfigError(f"there is no preset {name!r}{near_miss(name, _PRESETS)}; presets are {listed}")
    return _PRESETS[name]()


def preset_summary(name: str) -> str:
    """The first line of a preset's docstring."""
    return (inspect.getdoc(_PRESETS[name]) or "").partition("\n")[0]
