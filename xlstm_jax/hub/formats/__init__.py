"""The formats of published weights: a line each here, and the rest in the file of that name, as its `FORMAT`.

Files are imported when their format is used, so that the titles can be had without JAX.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xlstm_jax.config import ConfigError

if TYPE_CHECKING:
    from xlstm_jax.hub.formats.base import Format

TITLES = {
    "xlstm": "xLSTMForCausalLM of Hugging Face",
    "llama": "LlamaForCausalLM of Hugging Face",
    "xlstm-package": "xLSTMLMModel of the PyTorch package xlstm",
    "native": "any model of this package, by its own names",
}


def get_format(name: str) -> Format:
    """The row of a format.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in TITLES:
        raise ConfigError(f"the format is {name!r}, but must be one of {', '.join(TITLES)}")
    return importlib.import_module(f"xlstm_jax.hub.formats.{name.replace('-', '_')}").FORMAT


def detect(document: Mapping[str, Any], asked: str | None = None) -> str:
    """The format of a config.json, or the one that is asked for.

    Raises:
        ConfigError: if it is none of those known.
    """
    found = next((name for name in TITLES if get_format(name).detects(document)), None)
    if asked is not None:
        get_format(asked)
        if found != asked and (found is not None or "model_type" in document):
            other = f", which is the format {found}" if found else ""
            raise ConfigError(f"config.json has model_type {document.get('model_type')!r}{other}, not {asked}")
        return asked
    if found is None:
        known = "; ".join(f"{name}: {title}" for name, title in TITLES.items())
        kind = document.get("model_type")
        what = f"model_type {kind!r}" if kind is not None else "no model_type"
        raise ConfigError(f"config.json has {what}, which is no format known here ({known})")
    return found


def format_for(config: Any, preferred: str | None = None) -> str:
    """The format in which a model of ours is written: the preferred one if it can hold it, else the first that can.

    Raises:
        ConfigError: if there is none for such a model.
    """
    for name in sorted(TITLES, key=lambda name: name != preferred):
        row = get_format(name)
        if row.write is not None and isinstance(config, row.holds):
            return name
    raise ConfigError(f"there is no format here that a {type(config).__name__} is written in")
