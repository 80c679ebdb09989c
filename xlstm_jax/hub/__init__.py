"""Weights and configs of other packages."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "ReadOptions": "formats.base",
    "Weights": "formats.base",
    "WeightsError": "errors",
    "config_from_xlstm_jax": "formats.xlstm_jax_config",
    "config_from_xlstm_package": "formats.xlstm_package_config",
    "open_source": "folders",
    "params_from_xlstm_jax": "formats.xlstm_jax",
    "params_from_xlstm_package": "formats.xlstm_package",
    "write_huggingface": "folders",
    "xlstm_package_from_params": "formats.xlstm_package",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    # Not before one is used: what the command says of the formats needs no JAX.
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
