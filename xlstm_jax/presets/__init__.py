"""Named, complete experiments. A preset is a function; its docstring gives command, hardware, time and result."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.presets import llama_sizes, xlstm_jax_sizes, xlstm_paper
from xlstm_jax.presets.quickstart import quickstart, tiny
from xlstm_jax.presets.quickstart_llama import quickstart_llama
from xlstm_jax.presets.quickstart_mixed import quickstart_mixed
from xlstm_jax.presets.stdlib import stdlib
from xlstm_jax.presets.texts import enwik8, shakespeare, text8, wikitext2
from xlstm_jax.training.config import Experiment

_PRESETS: dict[str, Callable[[], Experiment]] = {
    **{function.__name__: function for function in (quickstart, quickstart_mixed, quickstart_llama, stdlib, tiny)},
    **{function.__name__: function for function in (shakespeare, enwik8, text8, wikitext2)},
    **xlstm_paper.PRESETS,
    **xlstm_jax_sizes.PRESETS,
    **llama_sizes.PRESETS,
}

__all__ = ["find_preset", "get_preset", "preset_names", "preset_summary"]


def preset_names() -> list[str]:
    """The names that presets are listed under; `find_preset` knows other spellings."""
    return list(_PRESETS)


def find_preset(name: str) -> str | None:
    """The listed name of the preset that is meant, or None.

    Case and punctuation do not matter: `xlstm_125M[7:1]`, `mLSTMv1_1.3B` and `mlstm-7b` are found. A size of the xLSTM
    paper without a ratio is its [1:0].
    """
    if name in _PRESETS:
        return name
    meant = _letters(name)
    spellings = {_letters(listed): listed for listed in reversed(_PRESETS)}
    return spellings.get(meant) or spellings.get(f"{meant}10")


def get_preset(name: str) -> Experiment:
    """A fresh experiment, free to be changed.

    Raises:
        ConfigError: for a name that no preset has.
    """
    found = find_preset(name)
    if found is None:
        listed = ", ".join(_PRESETS)
        raise ConfigError(f"there is no preset {name!r}{near_miss(name, _PRESETS)}; presets are {listed}")
    return _PRESETS[found]()


def preset_summary(name: str) -> str:
    """The first line of a preset's docstring."""
    return (inspect.getdoc(_PRESETS[name]) or "").partition("\n")[0]


def _letters(name: str) -> str:
    """The letters and digits of a name: all that tells presets apart."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
